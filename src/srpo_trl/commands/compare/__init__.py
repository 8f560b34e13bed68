"""`srpo-trl compare`: several variants from one start, their best scores within budgets, mean and error over seeds.

configs and options -> jobs -> runs (`srpo-trl train`, one process each) -> scores -> table, picture, JSON
"""
