"""What is reported of a face recogniser: accuracy on pairs, and TAR at a FAR on templates."""
