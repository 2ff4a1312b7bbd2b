"""Choice 3: how M is differentiated."""
