package nft

import (
	"sort"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

// Fake is a [Table] without a kernel, for tests. It refuses what the kernel refuses: an element that exists with
// another value, the removal of one that does not exist, intervals that overlap. The zero value is a namespace without
// the table. It is not safe for concurrent use.
type Fake struct {
	// Fail, where set, is asked before each operation ("read", "install", "apply", "remove"); its error is returned
	// and nothing is done.
	Fail func(operation string) error
	// Foreign is a table of the same name with another skeleton.
	Foreign bool
	// Commits are the changes that Apply committed, in order.
	Commits []plan.Change

	elements plan.Elements // nil: no table
	total    Result
	read     bool
}

func (f *Fake) fail(operation string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(operation)
}

// Read is [Table.Read].
func (f *Fake) Read() (State, error) {
	if err := f.fail("read"); err != nil {
		return State{}, err
	}
	if f.Foreign {
		return State{Present: true, Damage: "another version's", Elements: plan.Elements{}}, nil
	}
	if f.elements == nil {
		return State{Elements: plan.Elements{}}, nil
	}
	f.read = true
	return State{Present: true, Whole: true, Elements: f.elements.Clone()}, nil
}

// Glance is [Table.Glance].
func (f *Fake) Glance() (string, error) {
	switch {
	case f.fail("glance") != nil:
		return "", f.fail("glance")
	case f.Foreign:
		return "another version's", nil
	case f.elements == nil:
		return "it is gone", nil
	}
	return "", nil
}

// Install is [Table.Install].
func (f *Fake) Install(want plan.Elements) (Result, error) {
	if err := f.fail("install"); err != nil {
		return Result{}, err
	}
	e := want.Clone()
	if err := overlap(e); err != nil {
		return Result{}, err
	}
	f.elements, f.Foreign, f.read = e, false, true
	return f.wrote(want.Len()), nil
}

// Apply is [Table.Apply].
func (f *Fake) Apply(c plan.Change) (Result, error) {
	if len(c.Add)+len(c.Replace)+len(c.Remove) == 0 {
		return Result{}, nil
	}
	if err := f.fail("apply"); err != nil {
		return Result{}, err
	}
	if !f.read {
		return Result{}, errs.New(errs.Internal, "nft: the table must be read or installed before it is changed")
	}
	e := f.elements.Clone()
	f.read = false // until it succeeds
	for _, list := range [][]plan.Element{c.Replace, c.Remove} {
		for _, el := range list {
			if _, ok := e[el.Set][el.Key]; !ok {
				return Result{}, errs.New(errs.Conflict, "nft: remove %q from %s: no such element", el.Key, el.Set)
			}
			e.Delete(el.Set, el.Key)
		}
	}
	for _, list := range [][]plan.Element{c.Replace, c.Add} {
		for _, el := range list {
			if old, ok := e[el.Set][el.Key]; ok && old != el.Value {
				return Result{}, errs.New(errs.Conflict, "nft: add %q to %s: it exists with another value", el.Key, el.Set)
			}
			e.Put(el)
		}
	}
	if err := overlap(e); err != nil {
		return Result{}, err
	}
	f.elements, f.read = e, true
	f.Commits = append(f.Commits, c)
	return f.wrote(len(c.Add) + 2*len(c.Replace) + len(c.Remove)), nil
}

// Remove is [Table.Remove].
func (f *Fake) Remove() (Result, error) {
	if err := f.fail("remove"); err != nil {
		return Result{}, err
	}
	f.elements, f.Foreign, f.read = nil, false, false
	return f.wrote(1), nil
}

// Counts is [Table.Counts]; a fake drops nothing.
func (f *Fake) Counts() (map[Counter]Count, error) { return map[Counter]Count{}, nil }

// Total is [Table.Total].
func (f *Fake) Total() Result { return f.total }

// Close is [Table.Close].
func (f *Fake) Close() error { return nil }

func (f *Fake) wrote(objects int) Result {
	r := Result{Transactions: 1, Objects: objects}
	f.total.Transactions++
	f.total.Objects += objects
	return r
}

func overlap(e plan.Elements) error {
	for _, def := range plan.Sets() {
		if !def.Interval {
			continue
		}
		keys := make([]string, 0, len(e[def.Name]))
		for k := range e[def.Name] {
			keys = append(keys, string(k))
		}
		sort.Strings(keys)
		for i := 1; i < len(keys); i++ {
			if n := len(keys[i]) / 2; keys[i][:n] <= keys[i-1][n:] {
				return errs.New(errs.Conflict, "nft: intervals of %s overlap", def.Name)
			}
		}
	}
	return nil
}
