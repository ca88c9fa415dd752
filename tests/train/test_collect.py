"""Dynamic sampling on the host. Breaks when groups are lost, used twice, or a starving step stops a run."""

import jax
import numpy as np
import pytest
from support import tiny

from lgrpo.train.collect import Groups, Timer, collect, concatenate, empty_buffer, informative, rollout_metrics, select
from lgrpo.train.owned import at_home
from lgrpo.types import Finish, PromptBatch, Rollout, Scored

CFG = tiny(algo__dynamic__enabled=True, rollout__group_size=2, rollout__max_new_tokens=3, algo__dynamic__max_rounds=3)
PLAIN = tiny(rollout__group_size=2, rollout__max_new_tokens=3)
MIXED, EQUAL = [0.0, 1.0], [1.0, 1.0]


def rollout_of(uids):
    """A Rollout [N] whose ids say which prompt and sample it belongs to."""
    rows, length, k = 2 * len(uids), 3, CFG.rollout.latent.k
    tag = np.repeat(uids, 2) * 10 + np.tile([0, 1], len(uids))
    wide, flags = np.zeros((rows, length, k), np.float32), np.ones((rows, length), bool)
    ids = np.broadcast_to(tag[:, None, None], wide.shape).astype(np.int32)
    finish = np.full(rows, Finish.EOS, np.int32)
    return Rollout(ids, wide, wide, ~flags, flags, flags, np.zeros((rows, length), np.float32), finish, finish * 0, finish > 0)


def prompts_of(uids):
    return PromptBatch(np.zeros((len(uids), 5), np.int32), np.ones((len(uids), 5), bool), np.asarray(uids, np.int32))


def groups_of(uids, born):
    record = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), rollout_of(uids))
    rewards = np.tile(np.float32(MIXED), (len(uids), 1))
    return Groups(prompts_of(uids), record, rewards, rewards > -1, np.broadcast_to(np.int32(born), len(uids)).copy())


def held(groups):
    """uids in the occupied slots, in order; what belongs to them must still be theirs."""
    real = np.asarray(groups.born) >= 0
    uids = np.asarray(groups.prompts.uid)[real]
    np.testing.assert_array_equal(groups.rollout.ids[real][..., 0, 0], uids[:, None] * 10 + [0, 1])
    assert not np.asarray(groups.rollout.mask)[~real].any() and not np.asarray(groups.valid)[~real].any()
    return uids.tolist()


class Run:
    """Serves generations whose rewards are scripted, four prompts each, uids counted up."""

    def __init__(self, rewards, valid=None):
        self.rewards, self.valid, self.calls = rewards, valid, []

    def data(self):
        for start in range(0, 4 * len(self.rewards), 4):
            uids = np.arange(start, start + 4)
            yield prompts_of(uids), [str(u) for u in uids]

    def sample(self, prompts, index):
        self.calls.append((index, prompts.uid.tolist()))
        return rollout_of(prompts.uid)

    def grade(self, record, answers):
        index = len(self.calls) - 1
        assert [int(a) for a in answers] == self.calls[-1][1]
        valid = np.ones((4, 2), bool) if self.valid is None else np.asarray(self.valid[index])
        rewards = np.float32(self.rewards[index]).reshape(-1)
        return Scored(rewards, rewards > 0, valid.reshape(-1))

    def step(self, cfg=CFG, buffer=None, step=0, interrupted=lambda: False):
        buffer = empty_buffer(cfg) if buffer is None else buffer
        kw = {"cfg": cfg, "step": step, "timer": Timer(), "interrupted": interrupted}
        groups, buffer, metrics = collect(self.sample, self.grade, self.data(), buffer, **kw)
        return groups, buffer, metrics()


def test_informative_compares_valid_rewards_exactly():
    rewards = np.array([[0, 1, 1], [0.1, 0.1, 0.1], [0, 1, 1], [1, 0, 0], [0.3, 0.3 + 1e-7, 0.3], [0, 0, 0]], np.float32)
    valid = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
    assert informative(rewards, valid).tolist() == [True, False, False, False, True, False]


def test_select_takes_the_oldest_and_drops_the_aged():
    buffer = select(empty_buffer(CFG), [groups_of([1, 2, 3], born=[2, 4, 5])], want=0, step=5, max_age=9)[1]
    batch, left, used = select(buffer, [groups_of([7, 8, 9], born=6)], want=4, step=6, max_age=2)
    assert held(batch) == [2, 3, 7, 8] and used == 4  # group 1 is four steps old
    assert held(left) == [9]
    assert len(left.born) == len(buffer.born) == 4  # shapes never change: they are part of the checkpoint
    batch, left, used = select(left, [], want=4, step=8, max_age=2)
    assert held(batch) == [9] and used == 1 and batch.born.tolist() == [6, -1, -1, -1] and held(left) == []


def test_buffer_keeps_the_newest_of_too_many():
    _, left, _ = select(empty_buffer(CFG), [groups_of(list(range(7)), born=0)], want=1, step=0, max_age=2)
    assert held(left) == [3, 4, 5, 6]


def test_concatenate_and_rows():
    assert held(concatenate([groups_of([4, 5], 1), groups_of([6], 2)]).rows(np.array([2, 0]))) == [6, 4]


def test_without_dynamic_sampling_one_generation_is_used_as_it_is():
    run = Run([[EQUAL, MIXED, EQUAL, EQUAL]])
    assert empty_buffer(PLAIN) is None
    kw = {"cfg": PLAIN, "step": 3, "timer": Timer()}
    assert collect(Run([[MIXED]]).sample, run.grade, Run([[MIXED]]).data(), None, **kw, interrupted=lambda: True)[0] is None
    groups, buffer, metrics = collect(run.sample, run.grade, run.data(), None, **kw, interrupted=lambda: False)
    assert held(groups) == [0, 1, 2, 3] and buffer is None and groups.born.tolist() == [3] * 4
    assert metrics()["dynamic/informative_frac"] == 0.25 and metrics()["reward/mean"] == pytest.approx(7 / 8)


def test_forced_counts_rows_that_are_cut_afterwards():
    """A chain that was ended by force and whose answer then ran into the limit is both."""
    record = rollout_of([0, 1])
    free = np.array(record.loss_mask)
    free[[0, 2], 1] = False
    finish = np.array([Finish.FORCED_EXIT, Finish.EOS, Finish.LENGTH, Finish.LENGTH], np.int32)
    scored = Scored(np.zeros(4, np.float32), np.zeros(4, bool), np.array([True, True, False, False]))
    found = rollout_metrics(record.replace(loss_mask=free, finish=finish), scored)
    assert found["rollout/forced_frac"] == 0.5 and found["rollout/truncated_frac"] == 0.5


def test_refills_until_there_are_enough_and_keeps_the_surplus():
    run = Run([[MIXED, EQUAL, MIXED, EQUAL], [EQUAL, MIXED, MIXED, MIXED], [MIXED] * 4])
    groups, buffer, metrics = run.step(step=5)
    assert held(groups) == [0, 2, 5, 6] and held(buffer) == [7] and buffer.born[0] == 5
    assert [index for index, _ in run.calls] == [0, 1]  # a round of its own for the random keys
    assert metrics["dynamic/rounds"] == 2 and metrics["dynamic/starved"] == 0 and metrics["dynamic/buffered"] == 1
    assert metrics["reward/mean"] == pytest.approx((6 / 8 + 5 / 8) / 2)  # over all that was sampled, before the filter
    # the surplus goes first, two steps later it is still fresh enough, three steps later it is not
    for later, first in ((7, [7, 0, 2, 5]), (8, [0, 2, 5, 6])):
        assert held(Run(run.rewards).step(step=later, buffer=buffer)[0]) == first


def test_starving_goes_on_with_what_there_is():
    run = Run([[EQUAL] * 4, [EQUAL, EQUAL, MIXED, EQUAL], [EQUAL] * 4, [MIXED] * 4])
    groups, buffer, metrics = run.step()
    assert held(groups) == [6] and len(groups.born) == 4 and held(buffer) == []
    assert len(run.calls) == 3 and metrics["dynamic/starved"] == 1 and metrics["dynamic/used_frac"] == 0.25


def test_filter_looks_at_valid_rewards_only():
    valid = np.ones((4, 2), bool)
    valid[1] = [True, False]
    groups, _, _ = Run([[MIXED] * 4, [EQUAL] * 4, [EQUAL] * 4], [valid] * 3).step()
    assert held(groups) == [0, 2, 3]


def test_a_full_buffer_still_gets_one_generation():
    buffer = select(empty_buffer(CFG), [groups_of([91, 92, 93, 94], born=1)], want=0, step=1, max_age=2)[1]
    run = Run([[MIXED, EQUAL, EQUAL, MIXED]])
    groups, left, _ = run.step(buffer=buffer, step=2)
    assert held(groups) == [91, 92, 93, 94] and held(left) == [0, 3] and len(run.calls) == 1


def test_interruption_between_generations():
    """Nothing is returned and the buffer is the one of the step's start, so that the step can begin again."""
    start = empty_buffer(CFG)
    run = Run([[EQUAL] * 4] * 3)
    groups, buffer, metrics = run.step(buffer=start, interrupted=lambda: True)
    assert groups is None and buffer is start and metrics == {} and len(run.calls) == 1
    # and a step that has enough is not graded and trained first: the machine may be gone by then
    assert Run([[MIXED] * 4]).step(interrupted=lambda: True)[0] is None


def test_groups_stay_where_they_are_as_far_as_there_is_room():
    home = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    owner = np.array([1, 1, 1, 0, 0, 1, -1, 0])  # the second part has an empty slot
    order = at_home(owner, home, 4)
    assert order.tolist() == [3, 2, 0, 1, 4, 7, 5, 6]
    assert at_home(owner, home, 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 7], "no group leaves its part"
    assert sorted(at_home(owner, home, 8).tolist()) == list(range(8))
