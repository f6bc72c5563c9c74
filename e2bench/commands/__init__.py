"""What each command of the line does with its arguments: one file a command, one function `run` each."""
