"""Ray-distributed CryoFormer: continuous heterogeneous cryo-EM reconstruction."""
