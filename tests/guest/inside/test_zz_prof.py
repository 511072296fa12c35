from __future__ import annotations
import time, tempfile, logging, cProfile, pstats, io
from pathlib import Path
from tests.faults.world import *
from tests.faults.world import Life
from tests.faults.target import *
from tests.faults.sweep import Sweep
from volattachd.drivers.configfs import ConfigFs
from volattachd.portals import reachable_portals
from volattachd.journal import Journal

def test_prof(new_device):
    logging.getLogger("volattachd").setLevel(logging.CRITICAL)
    out=[]
    def t(name, f, n=20):
        a=time.monotonic()
        for _ in range(n): f()
        out.append(f"{name}: {(time.monotonic()-a)/n*1000:.2f} ms")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as d:
        w=World(Path(d,"state"), new_device("file"), ConfigFs(), KernelReader())
        w.go(Stage.AVAILABLE)
        for i in range(20):
            w.new_attachment()
            for c in (RESERVE, INITIALIZE, ATTACH, BEGIN, TERMINATE, DETACH):
                a=time.monotonic(); c.send(w); out.append((c.name, time.monotonic()-a))
        agg={}
        for x in [o for o in out if isinstance(o,tuple)]:
            agg.setdefault(x[0],[]).append(x[1])
        out[:]=[f"{k}: {sum(v)/len(v)*1000:.2f} ms" for k,v in agg.items()]
        w.new_attachment(); w.go(Stage.ATTACHED)
        t("portals", lambda: reachable_portals(w.service.driver.portals,"127.0.0.1"))
        t("read_target", w.read)
        t("restart", w.restart)
        t("reconcile", lambda: w.service.upkeep.reconcile(dry_run=False))
        def plan():
            v=w.service.journal.volumes[VOLUME]
            w.service.driver.plan(w.service._repairer.wanted(v))
        t("plan", plan)
        t("submit", lambda: w.service._workers.submit(lambda: None).wait(3))
        t("stat", lambda: w.fs.is_dir("iscsi"))
        t("read", lambda: w.fs.read("core/alua/lu_gps/default_lu_gp/members"))
        p=cProfile.Profile(); p.enable()
        for _ in range(10): w.restart()
        p.disable()
        s=io.StringIO(); pstats.Stats(p,stream=s).sort_stats("tottime").print_stats(22)
        w.close()
    raise AssertionError("\n".join(out)+s.getvalue())
