"""Settings of the property tests on data."""

from hypothesis import settings

# Deadlines fail on machines under load.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
