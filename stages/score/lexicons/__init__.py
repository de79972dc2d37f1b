"""Word lists that the rules read: YAML files with their own examples, so that a list is tested where it is written."""
