package host

import (
	"maps"
	"slices"
	"sync"
)

// Fake is a [Host] without a kernel, for tests: IPv4 and IPv6 forwarding, off at first. The zero value is ready for use.
// Its methods may be called at the same time.
type Fake struct {
	mu     sync.Mutex
	actual map[string]string
	before map[string]string
	writes int
}

// Set changes a setting as another program would. A name that Check does not list changes nothing.
func (f *Fake) Set(name, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	if _, ok := f.actual[name]; ok {
		f.actual[name] = value
	}
}

func (f *Fake) init() {
	if f.actual == nil {
		f.actual, f.before = map[string]string{forward4: "0", forward6: "0"}, map[string]string{}
	}
}

// Apply is [Host.Apply].
func (f *Fake) Apply() (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	writes := 0
	for _, s := range wanted(facts{}) {
		if f.actual[s.name] == s.value {
			continue
		}
		if _, ok := f.before[s.name]; !ok {
			f.before[s.name] = f.actual[s.name]
		}
		f.actual[s.name] = s.value
		writes++
	}
	f.writes += writes
	return writes, nil
}

// Check is [Host.Check].
func (f *Fake) Check() ([]State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	want := map[string]string{}
	for _, s := range wanted(facts{}) {
		want[s.name] = s.value
	}
	var states []State
	for _, name := range slices.Sorted(maps.Keys(f.actual)) {
		states = append(states, State{Name: name, Wanted: want[name], Actual: f.actual[name], Before: f.before[name]})
	}
	return states, nil
}

// Writes is the number of settings that Apply changed since the beginning.
func (f *Fake) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}
