"""aigc-compress: make small generative and perception models smaller and faster, with evidence."""

__version__ = "0.1.0"
