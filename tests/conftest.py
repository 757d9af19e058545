"""What all tests share."""

from hypothesis import settings

# A machine may be busy: how long one example takes says nothing of what it found.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
