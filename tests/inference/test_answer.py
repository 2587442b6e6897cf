"""What was found of images survives its way between ranks."""

import torch

from cryoformer_dist.inference.answer import Answer
from cryoformer_dist.physics.pose import Pose


def test_answers_come_out_as_they_were_packed() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two, three = torch.rand(3, 5, generator=draw)
    latent, deviation = torch.rand(2, 5, 4, generator=draw)
    pose = Pose(torch.rand(5, 3, 3, generator=draw), torch.rand(5, 2, generator=draw))
    back = Answer.unpack(Answer(latent, deviation, pose, one, two, three).pack())
    for seen, sent in ((back.latent, latent), (back.deviation, deviation), (back.amplitude, one), (back.weight, two)):
        assert torch.equal(seen, sent)
    assert torch.equal(back.alone, three)
    assert torch.equal(back.pose.rotation, pose.rotation)
    assert torch.equal(back.pose.shift_angstrom, pose.shift_angstrom)
