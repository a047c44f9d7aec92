"""Float Segmenter in, proven integer-only TFLite file out: `python -m convert --help` lists the steps."""
