"""The command line's commands, a file a family: options and what is printed. What they do lives in the rooms below."""
