"""`GRPOTrainer` and what a trainer owes its user beside the method, one job a class; `SRPOTrainer` stands on them."""
