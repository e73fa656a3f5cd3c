"""What several tests share. It is imported as ``testkit`` (pytest's ``pythonpath``), never through the name ``tests``."""
