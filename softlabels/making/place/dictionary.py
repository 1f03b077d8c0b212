"""The dictionary of a packed store that is made in a `Place`: trained here, on copies of the first shards."""

from __future__ import annotations

from softlabels.core.progress import Reporter
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.manifest import Plan
from softlabels.format.shard_records import PlannedShard
from softlabels.making.dictionary import ShardDictionary
from softlabels.making.place.commit import commit_name
from softlabels.making.place.plan import Mirror


class PlaceDictionary(ShardDictionary):
    """As `ShardDictionary`, over the scratch folder, into which it fetches what it needs."""

    def __init__(self, mirror: Mirror, plan: Plan) -> None:
        super().__init__(mirror.folder, plan)
        self._mirror, self._shards = mirror, plan.shards

    def train(self, shard: PlannedShard, report: Reporter) -> None:
        """Fetch the dictionary of a shard, or train and publish it, if it is still to be made.

        Raises:
            StoreError: a shard that it would be trained on is damaged, or the place is out of reach.
        """
        path = self._mirror.folder / DICTIONARY
        if shard.index < self.first or not self.first or path.exists():
            return
        try:
            self._mirror.fetch(DICTIONARY)
        except FileNotFoundError:
            for one in self._shards[: self.first]:
                self._mirror.fetch(one.name)
                self._mirror.fetch(commit_name(one.index))
            self._mirror.put(DICTIONARY, self._trained(report))
