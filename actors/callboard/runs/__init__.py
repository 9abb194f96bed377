"""What is known of a run in hand, whether it is at work or not."""
