package ct

import (
	"context"

	"golang.org/x/sys/unix"

	"podwire.dev/services/nodeagent/internal/dataplane"
	"podwire.dev/services/nodeagent/internal/judge"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Flows implements dataplane.Flows. It remembers, between passes, what was served. It is not safe for concurrent use.
type Flows struct {
	table    *Table
	services services
	policy   policy
}

var _ dataplane.Flows = (*Flows)(nil)

// New returns the flows of a table. The caller closes the table.
func New(t *Table) *Flows { return &Flows{table: t, policy: policy{judge: judge.New()}} }

// Reconcile implements dataplane.Flows. It must be called after the rules are in the kernel. On an error some flows may
// have been ended, and the caller tries again.
func (f *Flows) Reconcile(ctx context.Context, t dataplane.Tables, what dataplane.Concern) (int, error) {
	if what == (dataplane.Concern{}) {
		return 0, nil
	}
	f.services.load(t) // for policy, too: a flow that it lets go on may have lost its endpoint meanwhile
	defer f.services.unload()
	if f.services.idle() && !what.Policy {
		return 0, nil
	}
	if what.Policy {
		own, err := f.table.Addresses()
		if err != nil {
			return 0, err
		}
		f.policy.load(t, own)
	}
	ended, again := 0, true
	for round := 0; again && round < rounds; round++ {
		if what.Policy {
			settle()
		}
		n, cuts, err := f.pass(ctx, what)
		ended += n
		if err != nil {
			return ended, err
		}
		again = cuts > 0
	}
	if what.Services {
		f.services.passed()
	}
	return ended, nil
}

// rounds bounds how often a pass looks again after it has cut flows. A packet that was being judged while its flow was marked has
// written over the mark; the next round finds that, and has waited for the packets that met the flow unmarked.
const rounds = 4

// pass lists all flows once, and ends those that are over. It returns how many it ended, and how many of them it cut.
func (f *Flows) pass(ctx context.Context, what dataplane.Concern) (ended, cuts int, err error) {
	over := map[fate][]Entry{}
	err = f.table.Each(ctx, func(e *Entry) {
		if e.Zone != 0 {
			return // another software's: we use no zones
		}
		if v := f.fate(e, what); v != keep {
			over[v] = append(over[v], e.keep())
		}
	})
	if err != nil {
		return 0, 0, err
	}
	cuts, err = f.table.SetMark(ctx, over[cut], plan.CutMark, plan.IDMask)
	if err != nil {
		return cuts, cuts, err
	}
	if _, err := f.table.SetMark(ctx, over[release], 0, plan.IDMask); err != nil {
		return cuts, cuts, err
	}
	ended, err = f.table.Delete(ctx, over[end])
	return cuts + ended, cuts, err
}

// fate says what becomes of a flow. One that is cut is policy's alone: its entry keeps it from beginning anew.
func (f *Flows) fate(e *Entry, what dataplane.Concern) fate {
	v := keep
	if what.Policy {
		v = f.policy.fate(e)
	}
	if (v == release || v == keep && what.Services && !e.Cut()) && f.services.ends(e) {
		return end
	}
	return v
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// settle waits until no packet is on its way that met the rules as they were. A packet crosses all hooks in one RCU
// read-side section, and membarrier waits for those (membarrier(2): synchronize_rcu since 4.3): what it let pass is an
// entry afterwards, so the list that follows has it. That takes about 10 ms, so only policy waits: an entry to an
// endpoint that is gone is found by the next pass. Where the call is not there (nohz_full, a seccomp filter) the next pass
// finds the others too.
func settle() { _, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0) }
