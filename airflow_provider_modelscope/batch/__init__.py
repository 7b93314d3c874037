"""A batch: many requests in, their images and a manifest out, in one task."""
