"""Observers of training; import them as ``tql_lightning.callbacks``. Training is the same with and without."""

# Those that conf/tql.yaml leaves out: so the command line knows every one by its class alone.
from tql_lightning.callbacks import before_divergence as before_divergence
from tql_lightning.callbacks import episode_videos as episode_videos
