"""What both command lines are made of: options from settings, help in groups, progress and errors on a terminal."""
