"""The promises by subject, a class of tests each."""
