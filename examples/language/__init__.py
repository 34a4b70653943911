"""A small language model, distilled from a teacher that is kept on disk: see README.md."""
