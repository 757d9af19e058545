"""The sizing adviser's inputs and views."""
