"""``@task`` for the generation of images."""
