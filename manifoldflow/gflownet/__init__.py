"""GFlowNets: samplers proportional to a reward, as kernels of actions or of noisy steps under the one simulate."""

from manifoldflow.gflownet.balance import Balance, DriftedWalk, PinnedBridge
from manifoldflow.gflownet.env import Env, check_env
from manifoldflow.gflownet.exact import Enumeration, enumerate_env
from manifoldflow.gflownet.gflownet import GFlowNet, Mlp
from manifoldflow.gflownet.hypergrid import Hypergrid
from manifoldflow.gflownet.ising import Ising
from manifoldflow.gflownet.kernels import BackwardPolicy, ForwardPolicy
from manifoldflow.gflownet.losses import (
    Scores,
    detailed_balance,
    log_partition_variance,
    subtrajectory_balance,
    trajectory_balance,
)
from manifoldflow.gflownet.matching import flow_matching
from manifoldflow.gflownet.metrics import modes_found, rank_correlation, top_mean, unique
from manifoldflow.gflownet.replay import Replay
from manifoldflow.gflownet.reward import BudgetSpent, Reward, RewardError, RewardTimeout
from manifoldflow.gflownet.rollout import Rollout
from manifoldflow.gflownet.search import LocalSearch
from manifoldflow.gflownet.sequences import BitSequences, Sequences
from manifoldflow.gflownet.sets import ItemSets
from manifoldflow.gflownet.steps import WrappedSteps
from manifoldflow.gflownet.tuning import FlowSteps, RelativeBalance

__all__ = [
    "BackwardPolicy",
    "Balance",
    "BitSequences",
    "BudgetSpent",
    "DriftedWalk",
    "Enumeration",
    "Env",
    "FlowSteps",
    "ForwardPolicy",
    "GFlowNet",
    "Hypergrid",
    "Ising",
    "ItemSets",
    "LocalSearch",
    "Mlp",
    "PinnedBridge",
    "RelativeBalance",
    "Replay",
    "Reward",
    "RewardError",
    "RewardTimeout",
    "Rollout",
    "Scores",
    "Sequences",
    "WrappedSteps",
    "check_env",
    "detailed_balance",
    "enumerate_env",
    "flow_matching",
    "log_partition_variance",
    "modes_found",
    "rank_correlation",
    "subtrajectory_balance",
    "top_mean",
    "trajectory_balance",
    "unique",
]
