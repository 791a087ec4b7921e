"""Rules on training scripts, a module for each part of the work. A rule is a function of a few lines; script_rules.py puts them all to a script."""
