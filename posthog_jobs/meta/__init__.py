"""`meta`, what an app's code is given, and its extensions."""
