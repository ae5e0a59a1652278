"""The server: Flower's FedAvg with Undertow's rule, and a line of diagnostics a round."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from undertow.flower import strategy, with_diagnostics

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rule = strategy(str(context.run_config["defense"]), fraction_evaluate=0.0)
    measured = with_diagnostics(rule, poisoned=lambda reply: reply.content["metrics"]["liar"] == 1)
    result = measured.start(grid, ArrayRecord([np.zeros(3, np.float32)]), num_rounds=int(context.run_config["rounds"]))
    print("weights:", np.round(result.arrays.to_numpy_ndarrays()[0].astype(float), 3).tolist(), "(the truth is [1.0, -2.0, 0.5])")
