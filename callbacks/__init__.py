"""Callbacks that observe training and never change it; import them as ``tql_lightning.callbacks``."""

# Imported so that the command line finds them by class name; conf/tql.yaml imports the others.
from tql_lightning.callbacks import before_divergence as before_divergence
from tql_lightning.callbacks import episode_videos as episode_videos
