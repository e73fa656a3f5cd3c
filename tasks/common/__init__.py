"""What tasks have in common, once: files and runs, splits and batches, tables and pictures. It knows no science."""
