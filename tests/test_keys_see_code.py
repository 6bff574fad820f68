"""Keys see code: whatever of the user's code a stage calls changes its key, and nothing else does."""

from __future__ import annotations

import importlib
import json
import linecache
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignkit.errors import ConfigError
from alignkit.identity import component_code, digest, distributions, function_key, object_key, plain

UTILS = """
    import re
    WEIGHT = 2.0
    def score(text):
        return WEIGHT * len(text)
    def other(text):
        return 0.0
    class Base:
        factor = 3
        def scale(self, x):
            return self.factor * x
"""


class Folder:
    """A user's folder of scripts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))

    def load(self, name: str = "script") -> ModuleType:
        """The module as a new process would import it."""
        for known, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.path)):
                del sys.modules[known]
        importlib.invalidate_caches()
        return importlib.import_module(name)

    def key(self, make: Callable[[Any], Any] = function_key) -> str:
        return digest(make(self.load().reward))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield Folder(tmp_path)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


REWARDS = {
    "constant": ("W = 1\ndef reward(r): return W", "W = 1", "W = 2"),
    "type of a constant": ("W = 1\ndef reward(r): return W", "W = 1", "W = 1.0"),
    "helper": ("def h(r): return 1\ndef reward(r): return h(r)", "return 1", "return 2"),
    "helper of a helper": ("def g(): return 1\ndef h(): return g()\ndef reward(r): return h()", "return 1", "return 2"),
    "helper's constant": ("W = 1\ndef h(): return W\ndef reward(r): return h()", "W = 1", "W = 2"),
    "helper's default": ("def h(x=1): return x\ndef reward(r): return h()", "x=1", "x=2"),
    "keyword default": ("def reward(r, *, x=1): return x", "x=1", "x=2"),
    "default made elsewhere": ("W = 1\ndef reward(r, w=W): return w", "W = 1", "W = 2"),
    "object by default": (
        "class C:\n    w = 1\nc = C()\nc.w = 2\ndef reward(r, w=c): return w.w",
        "c.w = 2",
        "c.w = 3",
    ),
    "lambda": ("h = lambda: 1\ndef reward(r): return h()", "lambda: 1", "lambda: 2"),
    "lambda beside another": (
        "h, g = lambda: 1, lambda: 3\ndef reward(r): return h()",
        "lambda: 1",
        "lambda: 2",
    ),
    "which of two lambdas": ("F = [lambda: 1, lambda: 2]\nreward = F[0]", "F[0]", "F[1]"),
    "lambda in a lambda": ("reward = lambda r: (lambda x: x + 1)(r)", "x + 1", "x + 2"),
    "swapped helpers": (
        "def a(): return 1\ndef b(): return 2\nx, y = a, b\ndef reward(r): return x() - y()",
        "x, y = a, b",
        "x, y = b, a",
    ),
    "mutual recursion": (
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)\n"
        "def reward(r): return even(len(r))",
        "n != 0",
        "n != 1",
    ),
    "recursion": ("def reward(r): return r and 1 + reward(r[1:])", "1 + ", "2 + "),
    "dict": ("W = {'a': 1}\ndef reward(r): return W['a']", "1}", "2}"),
    "order of a dict": (
        "W = {'a': 1, 'b': 2}\ndef reward(r): return next(iter(W))",
        "'a': 1, 'b': 2",
        "'b': 2, 'a': 1",
    ),
    "tuple": ("W = (1, 2)\ndef reward(r): return W[0]", "(1, 2)", "(2, 2)"),
    "set": ("W = {'a', 'b'}\ndef reward(r): return r in W", "'b'}", "'c'}"),
    "bytes": ("W = b'a'\ndef reward(r): return len(W)", "b'a'", "b'b'"),
    "infinity": ("W = float('inf')\ndef reward(r): return W", "'inf'", "'-inf'"),
    "function in a dict": (
        "def h(): return 1\nW = {'a': h}\ndef reward(r): return W['a']()",
        "return 1",
        "return 2",
    ),
    "registry filled by a decorator": (
        "W = {}\ndef put(f):\n    W[f.__name__] = f\n    return f\n@put\ndef h(): return 1\n"
        "def reward(r): return W['h']()",
        "return 1",
        "return 2",
    ),
    "instance of a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    w: int = 1\nc = C(5)\ndef reward(r): return c.w",
        "C(5)",
        "C(6)",
    ),
    "method of a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    w: int = 1\n    def m(self): return 1\n"
        "c = C(5)\ndef reward(r): return c.m()",
        "return 1",
        "return 2",
    ),
    "default factory": (
        "from dataclasses import dataclass, field\n@dataclass\nclass C:\n"
        "    w: list = field(default_factory=lambda: [1])\ndef reward(r): return C().w[0]",
        "[1]",
        "[2]",
    ),
    "field that holds a function": (
        "from dataclasses import dataclass\nfrom typing import Callable\ndef h(): return 1\n@dataclass\nclass C:\n"
        "    f: Callable = h\nc = C()\ndef reward(r): return c.f()",
        "return 1",
        "return 2",
    ),
    "array": ("import numpy\nW = numpy.array([1.0])\ndef reward(r): return W.sum()", "[1.0]", "[2.0]"),
    "tensor": ("import torch\nW = torch.tensor([1.0])\ndef reward(r): return W.sum()", "[1.0]", "[2.0]"),
    "bfloat16 tensor": (
        "import torch\nW = torch.tensor(1.0, dtype=torch.bfloat16)\ndef reward(r): return W.sum()",
        "(1.0",
        "(2.0",
    ),
    "torch module": (
        "import torch\nM = torch.nn.Linear(1, 1)\nM.weight.data.fill_(1.0)\nM.bias.data.fill_(0.0)\n"
        "def reward(r): return M(torch.ones(1))",
        "fill_(1.0)",
        "fill_(2.0)",
    ),
    "dtype": ("import torch\nD = torch.float32\ndef reward(r): return torch.ones(1, dtype=D)", "32", "64"),
    "compiled pattern": ("import re\nP = re.compile('a')\ndef reward(r): return bool(P.match(r))", "'a'", "'b'"),
    "its bound method": ("import re\nm = re.compile('a').match\ndef reward(r): return bool(m(r))", "'a'", "'b'"),
    "flags of a pattern": ("import re\nP = re.compile('a', 0)\ndef reward(r): return bool(P.match(r))", ", 0", ", 2"),
    "path": ("from pathlib import Path\nP = Path('a')\ndef reward(r): return P.suffix", "'a'", "'b'"),
    "decimal": ("from decimal import Decimal\nD = Decimal('1')\ndef reward(r): return float(D)", "'1'", "'2'"),
    "enumeration": (
        "from enum import Enum\nclass E(Enum):\n    A = 1\n    B = 2\nW = E.A\ndef reward(r): return W.value",
        "W = E.A",
        "W = E.B",
    ),
    "value of an enumeration": (
        "from enum import Enum\nclass E(Enum):\n    A = 1\n    B = 2\ndef reward(r): return E.A.value",
        "A = 1",
        "A = 3",
    ),
    "named tuple": (
        "from typing import NamedTuple\nclass N(NamedTuple):\n    w: int = 1\ndef reward(r): return N().w",
        "= 1",
        "= 2",
    ),
    "namespace": (
        "from argparse import Namespace\nargs = Namespace(w=1, other=0)\ndef reward(r): return args.w",
        "w=1",
        "w=2",
    ),
    "value of a loop at module level": ("for W in range(3):\n    pass\ndef reward(r): return W", "3", "4"),
    "which function a library gives": (
        "from math import floor as f\ndef reward(r): return f(1.5)",
        "floor",
        "ceil",
    ),
    "partial": ("from functools import partial\ndef f(r, w): return w\nreward = partial(f, w=1)", "w=1", "w=2"),
    "function of a partial": (
        "from functools import partial\ndef f(r, w): return w + 1\nreward = partial(f, w=1)",
        "w + 1",
        "w + 2",
    ),
    "cached": (
        "from functools import lru_cache\n@lru_cache\ndef h(): return 1\ndef reward(r): return h()",
        "return 1",
        "return 2",
    ),
    "wrapper": (
        "from functools import wraps\ndef twice(f):\n    @wraps(f)\n    def inner(*a): return 2 * f(*a)\n"
        "    return inner\n@twice\ndef reward(response): return 1",
        "2 * f",
        "3 * f",
    ),
    "wrapped": (
        "from functools import wraps\ndef twice(f):\n    @wraps(f)\n    def inner(*a): return 2 * f(*a)\n"
        "    return inner\n@twice\ndef reward(response): return 1",
        "return 1",
        "return 2",
    ),
    "argument of a decorator": (
        "def times(n):\n    def deco(f):\n        def inner(*a): return n * f(*a)\n        return inner\n"
        "    return deco\n@times(2)\ndef reward(response): return 1",
        "times(2)",
        "times(3)",
    ),
    "below a library's decorator": (
        "import torch\ndef h(): return 1\n@torch.no_grad()\ndef reward(response): return h()",
        "return 1",
        "return 2",
    ),
    "context manager": (
        "from contextlib import contextmanager\n@contextmanager\ndef c(): yield 1\ndef reward(r):\n"
        "    with c() as x: return x",
        "yield 1",
        "yield 2",
    ),
    "single dispatch": (
        "from functools import singledispatch\n@singledispatch\ndef h(x): return 0\n@h.register\n"
        "def _(x: str): return 1\ndef reward(r): return h(r)",
        "return 1",
        "return 2",
    ),
    "closure": ("def make(w):\n    def f(r): return w\n    return f\nreward = make(1)", "make(1)", "make(2)"),
    "closure over a helper": (
        "def h(): return 1\ndef make(g):\n    return lambda r: g()\nreward = make(h)",
        "return 1",
        "return 2",
    ),
    "attribute of a function": ("def reward(r): return reward.w\nreward.w = 1", "w = 1", "w = 2"),
    "callable object": (
        "class S:\n    def __init__(self, w): self.w = w\n    def __call__(self, r): return self.w\nreward = S(1)",
        "S(1)",
        "S(2)",
    ),
    "code of a callable object": (
        "class S:\n    def __call__(self, r): return self.m()\n    def m(self): return 1\nreward = S()",
        "return 1",
        "return 2",
    ),
    "slots": (
        "class S:\n    __slots__ = ('w',)\n    def __init__(self, w): self.w = w\n    def __call__(self, r): "
        "return self.w\nreward = S(1)",
        "S(1)",
        "S(2)",
    ),
    "bound method": (
        "class S:\n    def __init__(self, w): self.w = w\n    def m(self, r): return self.w\nreward = S(1).m",
        "S(1)",
        "S(2)",
    ),
    "class method": (
        "class S:\n    w = 1\n    @classmethod\n    def m(cls, r): return cls.w\nreward = S.m",
        "w = 1",
        "w = 2",
    ),
    "static method": (
        "class S:\n    @staticmethod\n    def m(r): return 1\ndef reward(r): return S.m(r)",
        "return 1",
        "return 2",
    ),
    "property": (
        "class S:\n    @property\n    def p(self): return 1\ndef reward(r): return S().p",
        "return 1",
        "return 2",
    ),
    "cached property": (
        "from functools import cached_property\nclass S:\n    @cached_property\n    def p(self): return 1\n"
        "def reward(r): return S().p",
        "return 1",
        "return 2",
    ),
    "class attribute": ("class S:\n    w = 1\ndef reward(r): return S.w", "w = 1", "w = 2"),
    "metaclass": (
        "class M(type):\n    def __call__(cls): return 1\nclass S(metaclass=M): pass\ndef reward(r): return S()",
        "return 1",
        "return 2",
    ),
    "mixin": (
        "class A:\n    def m(self): return 1\nclass B: pass\nclass S(B, A): pass\ndef reward(r): return S().m()",
        "return 1",
        "return 2",
    ),
    "order of bases": (
        "class A:\n    def m(self): return 1\nclass B:\n    def m(self): return 2\nclass S(A, B): pass\n"
        "def reward(r): return S().m()",
        "(A, B)",
        "(B, A)",
    ),
    "super": (
        "class A:\n    def m(self, r): return 1\nclass S(A):\n    def m(self, r): return super().m(r)\n"
        "def reward(r, f=S.m): return f(S(), r)",
        "return 1",
        "return 2",
    ),
    "method put in later": (
        "class S: pass\ndef m(self): return 1\nS.m = m\ndef reward(r): return S().m()",
        "return 1",
        "return 2",
    ),
    "private name in a class": (
        "def _S__h(): return 1\nclass S:\n    def m(self): return __h()\ndef reward(r): return S().m()",
        "return 1",
        "return 2",
    ),
    "nested function": ("def reward(r):\n    def inner(): return W\n    return inner()\nW = 1", "W = 1", "W = 2"),
    "name in a comprehension": ("W = 1\ndef reward(r): return [W for _ in r]", "W = 1", "W = 2"),
    "class inside a function": (
        "W = 1\ndef reward(r):\n    class C:\n        w = W\n    return C.w",
        "W = 1",
        "W = 2",
    ),
    "global that it counts in": (
        "N = [1]\ndef reward(r):\n    N.append(0)\n    return N[0]",
        "[1]",
        "[2]",
    ),
    "generator that it draws from": (
        "import random\nrng = random.Random(1)\ndef reward(r): return rng.random()",
        "(1)",
        "(2)",
    ),
    "seed of a NumPy generator": (
        "import numpy\nSEED = 1\nrng = numpy.random.default_rng(SEED)\ndef reward(r): return rng.random()",
        "= 1",
        "= 2",
    ),
    "evaluated name": ("def h(): return 1\ndef reward(r): return eval('h')()", "return 1", "return 2"),
    "globals()": ("def h(): return 1\ndef reward(r): return globals()['h']()", "return 1", "return 2"),
    "docstring that is read": (
        "def h():\n    'one'\ndef reward(r): return len(h.__doc__)",
        "'one'",
        "'other'",
    ),
    "patched library": (
        "import json\ndef mine(x): return 1\njson.mine = mine\ndef reward(r): return json.mine(r)",
        "return 1",
        "return 2",
    ),
    "NumPy vectorize": (
        "import numpy\ndef h(x): return 1\nv = numpy.vectorize(h)\ndef reward(r): return v(0)",
        "return 1",
        "return 2",
    ),
    "object that says its key": (
        "class S:\n    def key(self): return 1\n    def m(self): return 5\ns = S()\ndef reward(r): return s.m()",
        "return 5",
        "return 6",
    ),
    "what an object says": (
        "class S:\n    def key(self): return 1\n    def m(self): return 5\ns = S()\ndef reward(r): return s.m()",
        "return 1",
        "return 2",
    ),
    "tensor's subclass": (
        "import torch\nclass T(torch.Tensor):\n    def m(self): return 1\nt = torch.ones(1).as_subclass(T)\n"
        "def reward(r): return t.m()",
        "return 1",
        "return 2",
    ),
    "list's subclass": (
        "class T(list):\n    def m(self): return 1\nt = T([3])\ndef reward(r): return t.m()",
        "return 1",
        "return 2",
    ),
    "what a list's subclass holds": (
        "class T(list):\n    def m(self): return 1\nt = T([3])\ndef reward(r): return t.m()",
        "[3]",
        "[4]",
    ),
    "property's subclass": (
        "class P(property):\n    def __get__(self, *a): return 1\nclass S:\n    @P\n    def p(self): return 0\n"
        "def reward(r): return S().p",
        "return 1",
        "return 2",
    ),
    "own descriptor": (
        "class D:\n    def __get__(self, *a): return 1\nclass S:\n    d = D()\ndef reward(r): return S().d",
        "return 1",
        "return 2",
    ),
    "object in a circle": (
        "class N:\n    def __init__(self, w): self.w, self.me = w, self\nn = N(1)\ndef reward(r): return n.me.w",
        "N(1)",
        "N(2)",
    ),
    "field called key": (
        "from dataclasses import dataclass\nfrom typing import Callable\ndef h(x): return 1\n@dataclass\nclass C:\n"
        "    key: Callable = h\nc = C()\ndef reward(r): return c.key(r)",
        "return 1",
        "return 2",
    ),
    "attribute beside the fields": (
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    w: int = 1\nc = C()\nc.more = 1\n"
        "def reward(r): return c.more",
        "more = 1",
        "more = 2",
    ),
    "partial of a method": (
        "from functools import partial\nclass S:\n    def m(self, w, r): return w\nreward = partial(S().m, 1)",
        "().m, 1",
        "().m, 2",
    ),
    "decorator object": (
        "class Times:\n    def __init__(self, n): self.n = n\n    def __call__(self, f):\n"
        "        return lambda r: self.n * f(r)\n@Times(2)\ndef reward(r): return 1",
        "Times(2)",
        "Times(3)",
    ),
    "setting that the pipeline changes": (
        "class Settings:\n    w = 1\nSettings.w = 5\ndef reward(r): return Settings.w",
        "w = 5",
        "w = 6",
    ),
    "function chosen when it is defined": (
        "if 1 > 0:\n    def h(): return 1\nelse:\n    def h(): return 2\ndef reward(r): return h()",
        "1 > 0",
        "1 < 0",
    ),
    "try, with and match": (
        "def h(): return 1\ndef reward(r):\n    try:\n        match r:\n            case str(): return h()\n"
        "    finally: pass",
        "return 1",
        "return 2",
    ),
    "generator that a closure draws from": (
        "import random\ndef make(seed):\n    rng = random.Random(seed)\n    return lambda r: rng.random()\n"
        "reward = make(1)",
        "make(1)",
        "make(2)",
    ),
    "variable of a closure that it fills": (
        "def make(bonus):\n    seen = {'bonus': bonus}\n    def f(r):\n        seen[r] = 1\n"
        "        return seen['bonus']\n    return f\nreward = make(1)",
        "make(1)",
        "make(2)",
    ),
    "helper that makes the memo of a closure": (
        "W = 1\ndef table(): return {'w': W}\ndef make():\n    memo = table()\n    def f(r):\n"
        "        return memo.setdefault(r, memo['w'])\n    return f\nreward = make()",
        "W = 1",
        "W = 2",
    ),
    "function in the memo of a closure": (
        "def h(): return 1\ndef make():\n    memo = {'h': h}\n    def f(r):\n        memo[r] = 1\n"
        "        return memo['h']()\n    return f\nreward = make()",
        "return 1",
        "return 2",
    ),
    "helper that makes what a closure holds and no key can": (
        "W = 1\ndef table(): return W\ndef make():\n    memo = [table(), (x for x in 'ab')]\n    def f(r):\n"
        "        memo.append(r)\n        return memo[0]\n    return f\nreward = make()",
        "W = 1",
        "W = 2",
    ),
    "closure that another function fills": (
        "def make(w):\n    seen = {}\n    seen['w'] = w\n    def note(r): seen[r] = 1\n"
        "    def f(r):\n        note(r)\n        return seen['w']\n    return f\nreward = make(1)",
        "make(1)",
        "make(2)",
    ),
    "registry filled by a call, and by the reward": (
        "RULES = {}\ndef rule(name, f): RULES[name] = f\ndef polite(r): return 1\nrule('polite', polite)\n"
        "def reward(r):\n    RULES[r] = None\n    return RULES['polite'](r)",
        "return 1",
        "return 2",
    ),
    "registry filled by a decorator, and by the reward": (
        "RULES = {}\ndef rule(f):\n    RULES[f.__name__] = f\n    return f\n@rule\ndef polite(r): return 1\n"
        "def other(r): return 0\ndef reward(r):\n    rule(other)\n    return RULES['polite'](r)",
        "return 1",
        "return 2",
    ),
    "generator seeded by a call": (
        "import random\nrng = random.Random()\ndef seed(n): rng.seed(n)\nseed(1)\ndef reward(r): return rng.random()",
        "seed(1)",
        "seed(2)",
    ),
    "subclasses": (
        "class Base: pass\nclass Polite(Base):\n    def m(self): return 1\n"
        "def reward(r): return [k().m() for k in Base.__subclasses__()]",
        "return 1",
        "return 2",
    ),
    "globals of a function": (
        "def h(): return 1\ndef g(): pass\ndef reward(r): return g.__globals__['h']()",
        "return 1",
        "return 2",
    ),
    "globals of a function by getattr": (
        "def h(): return 1\ndef g(): pass\ndef reward(r): return getattr(g, '__globals__')['h']()",
        "return 1",
        "return 2",
    ),
    "globals of a frame": (
        "import sys\ndef h(): return 1\ndef reward(r): return sys._getframe().f_globals['h']()",
        "return 1",
        "return 2",
    ),
    "globals() under another name": (
        "def h(): return 1\ng = globals\ndef reward(r): return g()['h']()",
        "return 1",
        "return 2",
    ),
    "eval in a closure": (
        "def h(): return 1\ndef make(e):\n    return lambda r: e('h')()\nreward = make(eval)",
        "return 1",
        "return 2",
    ),
    "builtins under another name": (
        "import builtins as b\ndef h(): return 1\ndef reward(r): return b.eval('h')()",
        "return 1",
        "return 2",
    ),
    "builtins imported inside": (
        "def h(): return 1\ndef reward(r):\n    from builtins import eval as e\n    return e('h')()",
        "return 1",
        "return 2",
    ),
    "default of a variable of the context": (
        "from contextvars import ContextVar\ndef h(): return 1\nV = ContextVar('V', default=h)\n"
        "def reward(r): return V.get()()",
        "return 1",
        "return 2",
    ),
    "value of a variable of the context": (
        "from contextvars import ContextVar\nV = ContextVar('V')\nV.set(1)\ndef reward(r): return V.get()",
        "set(1)",
        "set(2)",
    ),
    "variable of a thread": (
        "import threading\nT = threading.local()\nT.w = 1\ndef reward(r): return T.w",
        "w = 1",
        "w = 2",
    ),
    "behind a weak reference": (
        "import weakref\ndef h(): return 1\nW = weakref.ref(h)\ndef reward(r): return W()()",
        "return 1",
        "return 2",
    ),
    "in a weak registry": (
        "import weakref\ndef h(): return 1\nW = weakref.WeakValueDictionary(h=h)\ndef reward(r): return W['h']()",
        "return 1",
        "return 2",
    ),
    "path's subclass": (
        "from pathlib import PurePosixPath\nclass P(PurePosixPath):\n    def m(self): return 1\np = P('a')\n"
        "def reward(r): return p.m()",
        "return 1",
        "return 2",
    ),
    "coroutine": (
        "import asyncio\nasync def h(): return 1\ndef reward(r): return asyncio.run(h())",
        "return 1",
        "return 2",
    ),
}


@pytest.mark.parametrize("name", REWARDS)
def test_what_a_reward_uses_changes_its_key(folder: Folder, name: str) -> None:
    text, old, new = REWARDS[name]
    assert text.count(old) >= 1
    folder.write({"script.py": text})
    first = folder.key()
    assert folder.key() == first
    folder.write({"script.py": text.replace(old, new, 1)})
    assert folder.key() != first


SIBLINGS = {
    "import": "import utils\ndef reward(r): return utils.score(r)",
    "import as": "import utils as u\ndef reward(r): return u.score(r)",
    "from": "from utils import score\ndef reward(r): return score(r)",
    "from as": "from utils import score as s\ndef reward(r): return s(r)",
    "star": "from utils import *\ndef reward(r): return score(r)",
    "lazy import": "def reward(r):\n    import utils\n    return utils.score(r)",
    "lazy import as": "def reward(r):\n    import utils as u\n    return u.score(r)",
    "lazy from": "def reward(r):\n    from utils import score as s\n    return s(r)",
    "lazy in a helper": "def h(r):\n    from utils import score\n    return score(r)\ndef reward(r): return h(r)",
    "computed name": "import utils\ndef reward(r): return getattr(utils, 'sc' + 'ore')(r)",
    "module as an argument": "import utils\ndef call(m, r): return m.score(r)\ndef reward(r): return call(utils, r)",
    "module in a dict": "import utils\nM = {'u': utils}\ndef reward(r): return M['u'].score(r)",
    "module in a closure": "def make():\n    import utils\n    return lambda r: utils.score(r)\nreward = make()",
    "import_module": ("import importlib\ndef reward(r):\n    return importlib.import_module('utils').score(r)"),
    "sys.modules": "import sys, utils\ndef reward(r): return sys.modules['utils'].score(r)",
    "evaluated": "from utils import score\ndef reward(r): return eval('score(r)')",
    "through another": "import middle\ndef reward(r): return middle.call(r)",
    "another whole": "import middle\ndef reward(r): return getattr(middle, 'call')(r)",
    "base class": (
        "from utils import Base\nclass S(Base):\n    def __call__(self, r): return self.scale(1)\nreward = S()"
    ),
    "two levels up": (
        "from middle import Middle\nclass S(Middle):\n    def __call__(self, r): return self.scale(1)\nreward = S()"
    ),
    "package": "from pkg import call\ndef reward(r): return call(r)",
    "package's module": "import pkg.deep.inner\ndef reward(r): return pkg.deep.inner.call(r)",
    "lazy package's module": "def reward(r):\n    import pkg.deep.inner\n    return pkg.deep.inner.call(r)",
    "lazy module of a package": "def reward(r):\n    from pkg.deep import inner\n    return inner.call(r)",
    "package by relative and lazy imports": "from pkg.lazy import call\ndef reward(r): return call(r)",
}
FILES = {
    "utils.py": UTILS,
    "middle.py": "import utils\nfrom utils import Base\ndef call(r): return utils.score(r)\nclass Middle(Base): pass\n",
    "pkg/__init__.py": "from .deep.inner import call\n",
    "pkg/deep/__init__.py": "",
    "pkg/deep/inner.py": (
        "from ..inside import score\nfrom utils import WEIGHT\ndef call(r): return WEIGHT * score(r)\n"
    ),
    "pkg/inside.py": "import utils\ndef score(r): return utils.score(r)\n",
    "pkg/lazy.py": "def call(r):\n    from .inside import score\n    return score(r)\n",
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_module_counts_however_it_is_imported(folder: Folder, name: str) -> None:
    folder.write({"script.py": SIBLINGS[name], **FILES})
    first = folder.key()
    assert folder.key() == first
    for old, new in (("return WEIGHT * len", "return WEIGHT + len"), ("WEIGHT = 2.0", "WEIGHT = 3.0")):
        if "scale" in SIBLINGS[name]:
            old, new = ("self.factor * x", "self.factor + x") if "return" in old else ("factor = 3", "factor = 4")
        folder.write({"utils.py": UTILS.replace(old, new)})
        assert folder.key() != first, new
    folder.write({"utils.py": UTILS})
    assert folder.key() == first


SCRIPT = '''
    """A script."""
    import sys
    from utils import score
    RATE = 1e-3
    def neighbour(x):
        return RATE
    class Neighbour:
        pass
    def helper(r):
        """What it does."""
        return score(r)  # a comment
    def reward(r):
        return [helper(r), 1][0]
    if RATE > 1:
        print(neighbour(RATE))
'''
UNRELATED = {
    "the pipeline": ("print(neighbour(RATE))", "print(neighbour(2 * RATE))"),
    "a neighbour": ("return RATE", "return 2 * RATE"),
    "another constant": ("RATE = 1e-3", "RATE = 1e-4"),
    "a new function": ("class Neighbour:", "def new(): pass\n    class Neighbour:"),
    "a comment": ("# a comment", "# another\n        # and one more"),
    "a docstring": ("What it does", "What it does not"),
    "layout": ("[helper(r), 1][0]", "[\n            helper(r),\n            1,\n        ][0]"),
    "the module's docstring": ("A script", "The script\n\n    for rewards"),
}


@pytest.mark.parametrize("name", UNRELATED)
def test_what_a_reward_does_not_use_keeps_its_key(folder: Folder, name: str) -> None:
    folder.write({"script.py": SCRIPT, "utils.py": UTILS})
    first = folder.key()
    old, new = UNRELATED[name]
    assert SCRIPT.count(old) == 1
    folder.write({"script.py": SCRIPT.replace(old, new)})
    assert folder.key() == first


def test_an_unused_function_of_a_sibling_does_not_count(folder: Folder) -> None:
    folder.write({"script.py": SCRIPT, "utils.py": UTILS})
    first = folder.key()
    folder.write({"utils.py": UTILS.replace("return 0.0", "return 1.0")})
    assert folder.key() == first


def test_an_unused_argument_of_the_command_line_does_not_count(folder: Folder) -> None:
    text, _, _ = REWARDS["namespace"]
    folder.write({"script.py": text})
    first = folder.key()
    folder.write({"script.py": text.replace("other=0", "other=1")})
    assert folder.key() == first


def test_a_key_does_not_know_where_the_code_lies(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from pathlib import Path\nimport os\nHERE = Path(__file__).parent / 'a'\nTEXT = os.path.dirname(__file__)\n"
    text += "SET = {'a', 'b', 'c', 'd', 'e'}\ndef reward(r): return (HERE, TEXT, SET)"
    folder.write({"script.py": text, "elsewhere/script.py": text})
    first = folder.key()
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert "elsewhere" in str(folder.load().__file__)
    assert folder.key() == first


def test_what_the_code_itself_changes_keeps_its_key(folder: Folder) -> None:
    """A memo that fills and a generator that is drawn from: another key after the first stage would make the next one
    anew with each run of the script."""
    folder.write(
        {
            "script.py": """
                import random
                MEMO, COUNT, rng = {}, 0, random.Random(0)
                def count():
                    global COUNT
                    COUNT += 1
                def make():
                    seen = set()
                    def inner(r):
                        seen.add(r)
                        return len(seen)
                    return inner
                inner = make()
                START = [1]
                def start(): return {"a": START}
                def noted(r, memo={}, *, more=[], made=start(), draws=random.Random(1), fresh=random.Random()):
                    made[r] = draws.random() + fresh.random()
                    more.append(r)
                    noted.calls += 1
                    return memo.setdefault(r, noted.calls)
                noted.calls = 0
                def reward(r):
                    count()
                    noted(r)
                    return MEMO.setdefault(r, rng.random()) + inner(r)
            """
        }
    )
    module = folder.load()
    first = digest(function_key(module.reward))
    module.reward("a")
    assert module.MEMO
    assert module.COUNT == 1
    assert digest(function_key(module.reward)) == first


def test_what_changed_is_named(folder: Folder) -> None:
    folder.write({"script.py": "W = 1\ndef h(): return W\ndef reward(r): return h()"})
    first = function_key(folder.load().reward)
    folder.write({"script.py": "W = 2\ndef h(): return W\ndef reward(r): return h()"})
    second = function_key(folder.load().reward)
    changed = {k for k in first["code"] if first["code"][k] != second["code"][k]}
    assert changed == {"script.W"}
    assert second["code"]["script.W"] == 2


REFUSED = {
    "open file": ("F = open(__file__)\ndef reward(r): return F.read()", "script.F"),
    "generator": ("G = (x for x in 'abc')\ndef reward(r): return next(G)", "script.G"),
    "computed import": ("import importlib\ndef reward(r): return importlib.import_module(r).f()", "import it by name"),
    "import under another name": (
        "import importlib\nload = importlib.import_module\ndef reward(r): return load('utils').f()",
        "import it by name",
    ),
    "lazy import under another name": (
        "def reward(r):\n    from importlib import import_module as load\n    return load('utils').f()",
        "import it by name",
    ),
    "code by path": ("import runpy\ndef reward(r): return runpy.run_path(r)['f']()", "import it by name"),
    "open file in a closure": ("def make(f):\n    return lambda r: f.read()\nreward = make(open(__file__))", "key()"),
    "no source": ("exec('def h(): return 1')\ndef reward(r): return h()", "version="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_identified_is_refused_with_the_remedy(folder: Folder, name: str) -> None:
    text, match = REFUSED[name]
    folder.write({"script.py": text})
    with pytest.raises(ConfigError, match=r"version=") as refused:
        function_key(folder.load().reward)
    assert match in str(refused.value)
    assert refused.value.where.startswith("script.")


ORDINARY = """
    import collections, datetime, enum, fractions, logging, threading, typing, uuid, operator, itertools, string
    import numpy, torch
    from functools import partial
    log = logging.getLogger(__name__)
    lock = threading.Lock()
    T = typing.TypeVar("T")
    Text = typing.Optional[str]
    Words = list[str]
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(1)
    draws = numpy.random.default_rng(0)
    when = datetime.datetime(2020, 1, 1)
    third = fractions.Fraction(1, 3)
    counts = collections.Counter("abc")
    queue = collections.deque([1], maxlen=2)
    default = collections.defaultdict(list, a=[1])
    first = operator.itemgetter(0)
    missing = object()
    number = itertools.count()
    name = uuid.UUID(int=1)
    itself = []
    itself.append(itself)
    def reward(r):
        print(log, lock, T, Text, Words, device, generator, draws, when, third, counts, queue, default, first, missing)
        return float(torch.nn.functional.logsigmoid(torch.ones(1)) + next(number)), name, itself, string.ascii_letters
"""


def test_ordinary_globals_are_counted(folder: Folder) -> None:
    folder.write({"script.py": ORDINARY})
    key = function_key(folder.load().reward)
    assert "library torch" in key["code"]
    assert folder.key() == folder.key()


def cell(source: str, name: str) -> dict[str, Any]:
    """A notebook's cell: no file, but its source is known."""
    source = textwrap.dedent(source)
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space: dict[str, Any] = {}
    exec(compile(source, name, "exec"), space)
    return space


def test_a_cell_of_a_notebook_counts_by_what_it_says() -> None:
    source = """
        W = 1
        def helper(r): return W * len(r)
        class Kind:
            def score(self, r): return helper(r)
        kind = Kind()
        def reward(r): return kind.score(r)
    """
    first, same = (digest(function_key(cell(source, f"<cell {i}>")["reward"])) for i in range(2))
    assert first == same
    for i, (old, new) in enumerate((("W = 1", "W = 2"), ("W * len", "W + len"), ("return helper", "return -helper"))):
        assert digest(function_key(cell(source.replace(old, new), f"<cell {i + 2}>")["reward"])) != first


def test_a_component_registered_by_hand_counts_by_its_code() -> None:
    source = "def h(x): return {}\ndef loss(logprobs): return h(logprobs)\nclass Thing:\n    def m(self): return h(1)\n"
    one, other = cell(source.format("x"), "<plugin 1>"), cell(source.format("-x"), "<plugin 2>")
    for name in ("loss", "Thing"):
        assert component_code(one[name])
        assert component_code(one[name]) != component_code(other[name])
    assert component_code(one["Thing"]()) != component_code(other["Thing"]())


def test_a_component_of_a_distribution_counts_by_its_digest() -> None:
    from alignkit.registry.host import default_host

    for record in default_host().components():
        if record.kind in ("loss", "optimizer", "sampler"):
            assert component_code(record.object) == {}, record.qualified


def test_a_key_method_says_what_state_counts_and_the_code_counts_besides(folder: Folder) -> None:
    text = """
        from alignkit.annotators import Annotator
        def helper(x): return 1
        class Judge(Annotator):
            def __init__(self, name): self.name = name
            def key(self): return {"judge": self.name}
            def annotate(self, groups, seed=0): return helper(groups)
        reward = Judge("a")
    """
    keys = []
    for old, new in (("", ""), ("return 1", "return 2"), ('Judge("a")', 'Judge("b")')):
        folder.write({"script.py": text.replace(old, new)})
        keys.append(plain(folder.load().reward))
    assert keys[0]["judge"] == "a"
    assert len({digest(key) for key in keys}) == 3


def test_the_code_that_an_object_with_a_key_holds_counts(folder: Folder) -> None:
    text = """
        from functools import partial
        from alignkit.rewards import Reward
        def helper(x): return 1
        class Held:
            def m(self, x): return helper(x)
        class Mine(Reward):
            def __init__(self, *parts): self.parts = parts
            def key(self): return "mine"
        reward = Mine({})
    """
    for held in ("helper", "[helper]", "{'a': partial(helper, 1)}", "Held()", "Held().m"):
        script = text.replace("{}", held)
        for make in (plain, lambda reward: function_key(lambda r: reward.parts)):
            folder.write({"script.py": script})
            first = folder.key(make)
            folder.write({"script.py": script.replace("return 1", "return 2")})
            assert folder.key(make) != first, held


def test_the_command_line_counts_where_code_reads_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write({"script.py": "import sys\ndef reward(r): return sys.argv[1]"})
    monkeypatch.setattr(sys, "argv", ["script", "1"])
    first = folder.key()
    monkeypatch.setattr(sys, "argv", ["script", "2"])
    assert folder.key() != first


def test_a_function_may_say_its_own_key(folder: Folder) -> None:
    text = "F = open(__file__)\ndef h(): return F.read()\nh.key = lambda: 'one'\ndef reward(r): return h()"
    folder.write({"script.py": text})
    first = folder.key()
    folder.write({"script.py": text.replace("F.read()", "F.readline()")})
    assert folder.key() == first
    folder.write({"script.py": text.replace("'one'", "'two'")})
    assert folder.key() != first


CALLBACK = """
    import lightning as L
    from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback
    W = 1
    def helper(module): return W
    class Base(L.Callback):
        def on_train_start(self, trainer, module): self.change(module)
    class Change(Base):
        def __init__(self, parts): self.parts, self.file = parts, open(__file__)
        def change(self, module): helper(module)
    reward = [Change([1, {"a": (2,)}]), LambdaCallback(on_train_start=lambda *a: W), EarlyStopping("loss", patience=3)]
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("W = 1", "W = 2"), ("self.change(module)", "pass"), ("(2,)", "(3,)"), ("*a: W", "*a: -W"), ("=3", "=4")],
)
def test_callbacks_count_with_what_they_call_and_hold(folder: Folder, old: str, new: str) -> None:
    folder.write({"script.py": CALLBACK})
    first = folder.key(object_key)
    assert folder.key(object_key) == first
    folder.write({"script.py": CALLBACK.replace(old, new)})
    assert folder.key(object_key) != first


def test_a_file_edited_after_its_import_does_not_lend_its_text_to_the_old_code(folder: Folder) -> None:
    text = "import utils\ndef reward(r): return utils.score(r)"
    folder.write({"script.py": text, "utils.py": UTILS})
    module = folder.load()
    first = digest(function_key(module.reward))
    folder.write({"utils.py": "    # longer" + UTILS.replace("WEIGHT * len", "WEIGHT + len")})
    assert digest(function_key(module.reward)) == first
    assert folder.key() != first


def test_an_edit_before_the_first_look_is_refused(folder: Folder) -> None:
    folder.write({"script.py": "def reward(r):\n    return 1\n"})
    module = folder.load()
    folder.write({"script.py": "def reward(r):\n    return 2222\n"})
    with pytest.raises(ConfigError, match="edited since it was imported"):
        function_key(module.reward)


PROGRAM = """
    import sys
    from alignkit.identity import digest, function_key
    from utils import score
    NAMES = {"a", "b", "c", "d"}
    class Kind:
        def __call__(self, r): return score(r) if r in NAMES else lazily(r)
    kind = Kind()
    def lazily(r):
        from utils import other as o
        return o(r)
    def whole(r):
        import utils
        return getattr(utils, r)
    def reward(r): return kind(r) + whole(r)
    print(digest(function_key(reward)))
"""


def test_a_key_is_the_same_in_another_process_in_another_place_and_imported(folder: Folder, tmp_path: Path) -> None:
    files = {"script.py": PROGRAM, "utils.py": UTILS}
    folder.write({**files, **{f"moved/{name}": text for name, text in files.items()}})

    def said(command: list[str], seed: int, place: Path) -> str:
        env = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, *command], cwd=place, env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    found = [said(["script.py"], 1, tmp_path), said([str(tmp_path / "script.py")], 2, tmp_path / "moved")]
    found += [said(["script.py"], 3, tmp_path / "moved"), said(["-m", "script"], 4, tmp_path)]
    found += [said(["-c", "import script"], 5, tmp_path)]
    assert len(set(found)) == 1
    assert len(found[0]) == 64


def distribution(folder: Path, name: str, version: str, text: str, direct: str = "") -> None:
    """An installed distribution of one module."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{name}.py,,\n{name}-{version}.dist-info/METADATA,,\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    if direct:
        (info / "direct_url.json").write_text(direct)


@pytest.mark.parametrize("editable", [False, True])
def test_a_library_counts_by_its_version_and_an_editable_one_by_its_content(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool
) -> None:
    name = "keys_library_edited" if editable else "keys_library"
    place = tmp_path / ("project" if editable else "site-packages")
    monkeypatch.syspath_prepend(str(place))
    direct = json.dumps({"url": f"file://{place}", "dir_info": {"editable": True}}) if editable else ""
    folder.write({"script.py": f"import {name}\ndef reward(r): return {name}.f(r)"})

    def key(version: str, text: str) -> str:
        shutil.rmtree(place, ignore_errors=True)
        distribution(place, name, version, text, direct)
        distributions.version_of.cache_clear()
        return folder.key()

    first = key("1.0", "def f(r): return 1")
    assert (key("1.0", "def f(r): return 2") == first) is not editable
    assert (key("1.1", "def f(r): return 1") == first) is editable


PIPELINE = """
    import lightning as L, torch
    from alignkit import Groups, Run, hookimpl
    SIGN = 1
    def helper(text): return SIGN * len(text)
    def reward(response): return float(helper(response))
    def inner(x): return -torch.nn.functional.logsigmoid(x)
    def loss(chosen_rewards, rejected_rewards): return inner(chosen_rewards - rejected_rewards)
    class Plugin:
        @hookimpl
        def register_losses(self, register): register("by_hand", loss)
    FACTOR = 1.0
    class Change(L.Callback):
        def __init__(self): self.steps = []
        def on_train_batch_end(self, *args): self.steps.append(FACTOR)
    def main(folder, host):
        with Run(folder, host=host, trainer={"callbacks": [Change()]}) as run:
            run.host.register(Plugin(), "mine")
            v0 = run.policy("tiny", lora=None)
            pairs = Groups.from_rows([{"prompt": "p", "responses": ["good", "bad"], "ranks": [1, 2]}])
            more = Groups.from_rows([{"prompt": "q", "responses": ["good", "bad"], "ranks": [1, 2]}])
            for name, rows in (("one", pairs), ("two", more)):
                run.train_reward(v0, rows, loss="by_hand", heldout_fraction=0.0, name=name)
            run.evaluate(v0, Groups.from_prompts(["a"]), {"r": reward}, max_new_tokens=2, name="e")
"""


def test_a_script_run_again_makes_what_its_edit_reaches_and_nothing_else(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignkit.registry.host import PluginHost

    host = PluginHost(allow=[])

    def made(old: str = "", new: str = "") -> set[str]:
        folder.write({"script.py": PIPELINE.replace(old, new)})
        folder.load().main(tmp_path / "run", host)
        out = capsys.readouterr().out
        return {name for name in ("policy", "one", "two", "e") if f"] {name}: done already" not in out}

    assert made() == {"policy", "one", "two", "e"}
    assert made() == set()
    assert made("-torch", "+torch") == {"one", "two"}
    assert made("SIGN = 1", "SIGN = -1") == {"e"}
    assert made("FACTOR = 1.0", "FACTOR = 2.0") == {"policy", "one", "two", "e"}
    assert made("max_new_tokens=2", "max_new_tokens=3") == {"e"}
    assert made('name="e")', 'name="e")\n            run.close()') == set()


def test_what_a_combination_of_rewards_holds_counts_with_its_code(folder: Folder) -> None:
    text = """
        from alignkit.rewards import Piecewise, Reward, WeightedSum
        class Mine(Reward):
            name = "mine"
            def key(self): return "mine"
            def score(self, groups): return 1
        class Other(Mine): name = "other"
        reward = {}
    """
    for combination in ("WeightedSum((Mine(),), (1.0,))", "Piecewise(Other(), Mine())"):
        folder.write({"script.py": text.format(combination)})
        first = folder.key(plain)
        folder.write({"script.py": text.format(combination).replace("return 1", "return 2")})
        assert folder.key(plain) != first


def test_a_module_loaded_again_counts_as_it_is_now(folder: Folder) -> None:
    files = {"script.py": "import utils\ndef reward(r): return getattr(utils, r)", "utils.py": "W = [1]\n"}
    folder.write(files)
    module = folder.load()
    first = digest(function_key(module.reward))
    folder.write({"utils.py": "W = [2]\n"})
    assert digest(function_key(module.reward)) == first  # still the old one
    importlib.reload(sys.modules["utils"])
    assert digest(function_key(module.reward)) != first


def test_ordinary_classes_of_libraries_are_the_same_in_every_process(folder: Folder) -> None:
    """Addresses and hashes that libraries leave in classes and objects do not get into keys."""
    folder.write(
        {
            "script.py": """
                import sys
                from dataclasses import KW_ONLY, InitVar, dataclass, field
                from typing import Generic, Protocol, TypeVar
                from transformers import GenerationConfig, GPT2Config
                config, generation = GPT2Config(), GenerationConfig.from_model_config(GPT2Config())
                T = TypeVar("T")
                @dataclass(slots=True, frozen=True, order=True)
                class Slotted(Generic[T]):
                    a: int = 1
                    _: KW_ONLY
                    b: list = field(default_factory=list, metadata={"of": object})
                    c: InitVar[int] = 3
                class Asks(Protocol):
                    def f(self) -> int: ...
                def reward(r): return Slotted(), Asks, config, generation
                if __name__ == "__main__":
                    from alignkit.identity import digest, function_key
                    print(digest(function_key(reward)))
            """
        }
    )
    here = folder.key()
    done = subprocess.run([sys.executable, folder.path / "script.py"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


ARGUMENTS = {
    "enumeration of texts": (
        "from enum import Enum\nclass Mode(str, Enum):\n    A = 'a'\n    def m(self): return 1\nreward = Mode.A",
        "return 1",
        "return 2",
    ),
    "which of an enumeration": (
        "from enum import Enum\nclass Mode(str, Enum):\n    A = 'a'\n    B = 'b'\nreward = Mode.A",
        "reward = Mode.A",
        "reward = Mode.B",
    ),
    "number": ("class N(int):\n    def m(self): return 1\nreward = N(3)", "return 1", "return 2"),
    "value of a number": ("class N(float): pass\nreward = N(3)", "(3)", "(4)"),
    "named tuple": (
        "from typing import NamedTuple\nclass N(NamedTuple):\n    w: int = 1\n    def m(self): return 1\n"
        "reward = [N()]",
        "return 1",
        "return 2",
    ),
    "dict": (
        "class D(dict):\n    def __missing__(self, key): return 1\nreward = {'d': D(a=1)}",
        "return 1",
        "return 2",
    ),
    "what a dict holds": ("class D(dict): pass\nreward = D(a=1)", "a=1", "a=2"),
    "text or number as a name": ("reward = {1: 2}", "1:", "'1':"),
    "order of a field": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    words: dict\n"
        "reward = C({'a': 1, 'b': 3})",
        "'a': 1, 'b': 3",
        "'b': 3, 'a': 1",
    ),
    "key that takes an argument": (
        "class S:\n    def key(self, row): return row\n    def m(self): return 1\nreward = S()",
        "return 1",
        "return 2",
    ),
    "half a character": ("reward = ['\\ud800']", "ud800", "ud801"),
    "name of a sum": (
        "from alignkit.rewards import FunctionReward, WeightedSum\ndef f(response): return 1\n"
        "reward = WeightedSum((FunctionReward(f),), (1.0,), name='a')",
        "'a'",
        "'b'",
    ),
    "name of a combination": (
        "from alignkit.rewards import FunctionReward, Piecewise\ndef f(response): return 1\n"
        "reward = Piecewise(FunctionReward(f, 's'), FunctionReward(f, 'h'), name='a')",
        "'a'",
        "'b'",
    ),
    "memo of a frozen dataclass": (
        "from dataclasses import dataclass\ndef h(): return 1\n@dataclass(frozen=True)\nclass C:\n"
        "    def __post_init__(self): object.__setattr__(self, 'h', h)\nreward = C()",
        "return 1",
        "return 2",
    ),
}


@pytest.mark.parametrize("make", [plain, object_key])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_counts_with_its_class(folder: Folder, name: str, make: Callable[[Any], Any]) -> None:
    text, old, new = ARGUMENTS[name]
    folder.write({"script.py": text})
    first = folder.key(make)
    assert folder.key(make) == first
    json.dumps(make(folder.load().reward), ensure_ascii=False).encode()
    folder.write({"script.py": text.replace(old, new, 1)})
    assert folder.key(make) != first


def test_ordinary_arguments_are_plain_as_they_are() -> None:
    value = {"b": (1, 2.5), "a": [None, "x", {3, 1, 20}], "p": Path("x/y")}
    assert plain(value) == {"b": [1, 2.5], "a": [None, "x", [1, 3, 20]], "p": "x/y"}
    assert digest(plain({"b": 1, "a": 2})) == digest(plain({"a": 2, "b": 1}))
    assert digest(plain({2: 1, 1: 2})) == digest(plain({1: 2, 2: 1}))


def test_a_set_of_anything_is_in_an_order_of_its_own() -> None:
    @dataclass(frozen=True)
    class Pair:
        a: int

    texts = {digest(plain(frozenset(items))) for items in ([1, "a", Pair(2)], [Pair(2), "a", 1])}
    assert len(texts) == 1
    assert [item["a"] for item in plain({Pair(2), Pair(1)})] == [1, 2]


def test_what_cannot_be_plain_is_refused_with_the_remedy() -> None:
    from alignkit.rewards import Reward

    class Silent(Reward):
        pass

    itself: list[Any] = []
    itself.append(itself)
    for value in (Silent(), itself, object()):
        with pytest.raises(ConfigError, match=r"key\(\) method"):
            plain(value)
    with pytest.raises(ConfigError, match="holds itself"):
        object_key(itself)


def test_a_handed_over_globals_is_refused(folder: Folder) -> None:
    folder.write({"script.py": "def h(): return 1\ndef reward(r, g=globals): return g()['h']()"})
    with pytest.raises(ConfigError, match="may bring any name"):
        folder.key()


def test_what_a_value_notes_in_itself_as_it_is_used_keeps_its_key(folder: Folder) -> None:
    """A memo of a frozen dataclass, of a thread, a context or a weak cache; and what closures fill and draw from."""
    folder.write(
        {
            "script.py": """
                import functools, itertools, random, threading, weakref
                from contextvars import ContextVar
                from dataclasses import dataclass, field
                import numpy, utils
                LOCAL, VAR, WEAK = threading.local(), ContextVar("V", default=0), weakref.WeakValueDictionary()
                RULES = {}
                def rule(f):
                    RULES[f.__name__] = f
                    return f
                @dataclass(frozen=True)
                class Frozen:
                    w: int = 1
                    memo: dict = field(default_factory=dict, compare=False)
                    def __call__(self, r):
                        object.__setattr__(self, "last", r)
                        self.memo[r] = VAR.get()
                        return self.w
                frozen = Frozen()
                def counted(f):
                    @functools.wraps(f)
                    def inner(*args):
                        inner.calls += 1
                        return f(*args)
                    inner.calls = 0
                    return inner
                @counted
                def make():
                    rng, count, total = random.Random(1), itertools.count(), 0
                    draws, fresh, table = numpy.random.default_rng(1), random.Random(), {"a": [1]}
                    noted = set()
                    def note(r): noted.add(r)
                    def inner(r):
                        nonlocal total
                        total += 1
                        table["a"].append(r)
                        note(r)
                        return rng.random() + next(count) + draws.random() + fresh.random() + len(noted)
                    return inner
                inner = make()
                def reward(r):
                    LOCAL.x = r
                    VAR.set(r)
                    WEAK[r] = reward
                    RULES[r] = RULES.get(r)
                    utils.COUNT += 1
                    utils.MEMO[r] = 1
                    return make() and frozen(r) + inner(r)
            """,
            "utils.py": "COUNT, MEMO = 0, {}\n",
        }
    )
    module = folder.load()
    for make, value in ((function_key, module.reward), (plain, module.frozen), (plain, module.inner)):
        first = digest(make(value))
        module.reward("a")
        module.reward("b")
        assert digest(make(value)) == first
    assert module.utils.COUNT == 6
    assert module.frozen.memo
    assert digest(function_key(folder.load().reward)) == digest(function_key(folder.load().reward))


def test_what_the_pipeline_sets_between_two_stages_counts(folder: Folder) -> None:
    text = """
        import threading
        from contextvars import ContextVar
        VAR, LOCAL = ContextVar("V", default=0), threading.local()
        LOCAL.w = 0
        def reward(r): return VAR.get() + LOCAL.w
    """
    folder.write({"script.py": text})
    module = folder.load()
    keys = [digest(function_key(module.reward))]
    token = module.VAR.set(1)
    keys.append(digest(function_key(module.reward)))
    module.VAR.reset(token)
    module.LOCAL.w = 1
    keys.append(digest(function_key(module.reward)))
    assert len(set(keys)) == 3


def test_a_module_loaded_again_counts_by_what_it_fills_now(folder: Folder) -> None:
    text = "W = 1\nTABLE, COUNT = {'w': W}, W\ndef reward(r):\n    global COUNT\n    COUNT += 1\n    TABLE[r] = 1\n"
    folder.write({"script.py": text})
    module = folder.load()
    first = digest(function_key(module.reward))
    module.reward("a")
    assert digest(function_key(module.reward)) == first
    folder.write({"script.py": text.replace("W = 1", "W = 2")})
    importlib.reload(module)
    assert digest(function_key(module.reward)) != first


def test_a_registry_filled_by_another_module_counts(folder: Folder) -> None:
    files = {
        "script.py": "import more\nfrom base import RULES\ndef reward(r): return RULES.setdefault('polite', None)(r)",
        "base.py": "RULES = {}\n",
        "more.py": "from base import RULES\ndef polite(r): return 1\nRULES['polite'] = polite\n",
    }
    folder.write(files)
    first = folder.key()
    assert folder.key() == first
    folder.write({"more.py": files["more.py"].replace("return 1", "return 2")})
    assert folder.key() != first


def test_a_subclass_in_another_module_counts_where_subclasses_are_asked_for(folder: Folder) -> None:
    files = {
        "script.py": "import more\nfrom base import Base\ndef reward(r): return [k.w for k in Base.__subclasses__()]",
        "base.py": "class Base: pass\n",
        "more.py": "import deep\n",
        "deep.py": "from base import Base\nclass More(Base):\n    def w(self): return h()\ndef h(): return 1\n",
    }
    folder.write(files)
    first = folder.key()
    assert folder.key() == first
    folder.write({"deep.py": files["deep.py"].replace("return 1", "return 2")})
    assert folder.key() != first
