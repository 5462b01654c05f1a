"""An app and its installations: its code, its `plugin.json`, its config."""
