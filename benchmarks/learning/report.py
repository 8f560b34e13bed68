def report(x):
    pass


def best_rate(*a):
    return 5e-4
