"""What tools are made of: how they are declared, checked, called and timed."""
