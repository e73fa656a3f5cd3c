"""Write the generated sets of ``data/densities``.

python -m manifoldflow.tasks.densities.make_embedded
"""

import numpy as np
import torch

from manifoldflow.checkpoint import data_path
from manifoldflow.tasks.common.files import atomic
from manifoldflow.tasks.densities.embedded import LAWS, embedded_names, load_embedded, make_set


def main() -> None:
    """Write every set and print its law's entropy, estimated from 200,000 draws."""
    folder = data_path("densities")
    folder.mkdir(parents=True, exist_ok=True)
    for name in embedded_names():
        train, test = make_set(name)
        with atomic(folder / f"{name}.npz") as fresh:
            np.savez_compressed(fresh, train=train.numpy(), test=test.numpy())
        line = f"{name}: {len(train)} + {len(test)} points on {load_embedded(name).space}"
        if name in LAWS:
            law = LAWS[name]()
            x = law.sample((200_000,), generator=torch.Generator().manual_seed(0))
            value = -law.log_prob(x).double()
            line += f", entropy {float(value.mean()):.4f} ± {float(value.std()) / 200_000**0.5:.4f} nats"
        print(line, flush=True)


if __name__ == "__main__":
    main()
