"""Workers under Ray; nothing outside this folder imports Ray."""
