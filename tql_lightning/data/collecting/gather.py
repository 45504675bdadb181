"""Collects episodes in several processes; the result does not depend on their number."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice

from tqdm import tqdm

from tql_lightning.data.collecting.partial import Arrays, KeptEpisodes
from tql_lightning.system.child_processes import (
    end_with_parent,
    one_thread_in_new_processes,
)

Key = tuple[int, ...]  # seed of one episode
CollectEpisode = Callable[[Key], Arrays]
MakeCollector = Callable[[], CollectEpisode]  # creates the environment; called once in each process


def gather(
    make: MakeCollector, keys: Iterable[Key], workers: int, rows: int, kept: KeptEpisodes | None = None
) -> list[Arrays]:
    """Collects one episode per key, in the order of the keys, until there are ``rows`` rows.

    Args:
        make: makes what collects the episode of a key; has to be picklable if there are several workers.
        keys: One key for each episode; may be endless.
        workers: processes; 1 collects in this one.
        rows: when to stop, and what the progress bar on stderr counts to. An episode's rows are those of its
            array ``actions``.
        kept: episodes of the first keys that an earlier call kept before it was interrupted; they are taken from
            there, and this call's are kept too.

    Raises:
        ChildProcessError: a process was killed, for instance for its memory.
    """
    episodes = kept.load() if kept else []
    done = sum(len(episode["actions"]) for episode in episodes)
    bar = tqdm(
        total=rows,
        initial=min(done, rows),
        unit=" rows",
        desc="continuing" if episodes else "collecting",
        unit_scale=True,
        dynamic_ncols=True,
    )
    following = islice(keys, len(episodes), None)
    try:
        with bar, closing(_episodes(make, following, workers)) as stream:
            while done < rows and (episode := next(stream, None)) is not None:
                size = len(episode["actions"])
                episodes.append(episode)
                bar.update(min(size, rows - done))
                done += size
                if kept:
                    kept.add(episode)
    except (KeyboardInterrupt, SystemExit, ChildProcessError):
        if kept:
            kept.write()
            print(f"\nEpisodes so far are in {kept.folder}; the same call continues there.", file=sys.stderr)
        raise
    return episodes


def _episodes(make: MakeCollector, keys: Iterator[Key], workers: int) -> Generator[Arrays, None, None]:
    if workers == 1:
        yield from map(make(), keys)
        return
    context = multiprocessing.get_context("spawn")
    with (
        one_thread_in_new_processes(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(make,)) as pool,
    ):
        try:
            pending: deque[Future[Arrays]] = deque(pool.submit(_run, key) for key in islice(keys, 2 * workers))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(_run, key) for key in islice(keys, 1))
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"one of {workers} collecting processes ended unasked; if memory is short, use fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_collect_episode: CollectEpisode | None = None


def _start(make: MakeCollector) -> None:
    global _collect_episode  # noqa: PLW0603  (one environment per worker process)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once and without a traceback
    threading.Thread(target=end_with_parent, daemon=True).start()
    _collect_episode = make()


def _run(key: Key) -> Arrays:
    assert _collect_episode is not None
    return _collect_episode(key)
