package liveness

import (
	"testing"

	"podwire.dev/internal/store"
)

// TestANodeIsDeadUntilTheWorldHasItAlive: the World lags behind what was written into the store.
func TestANodeIsDeadUntilTheWorldHasItAlive(t *testing.T) {
	t.Parallel()
	none := map[string]store.Revision{}
	d := &deaths{}
	steps := []struct {
		name string
		do   func()
		dead bool
	}{
		{"nothing is known", func() {}, true},
		{"alive", func() { d.read(10, none) }, false},
		{"declared dead", func() { d.declare("n", 12) }, true},
		{"a World from before", func() { d.read(11, none) }, true},
		{"the World has it", func() { d.read(12, map[string]store.Revision{"n": 12}) }, true},
		{"still", func() { d.read(15, map[string]store.Revision{"n": 12}) }, true},
		{"alive again", func() { d.read(16, none) }, false},
		{"another leads", func() { d.forget() }, true},
		{"declared while nothing is known", func() { d.declare("n", 20) }, true},
		{"this one leads", func() { d.read(21, none) }, false},
	}
	for _, s := range steps {
		s.do()
		if d.has("n") != s.dead {
			t.Fatalf("%s: dead is %v", s.name, d.has("n"))
		}
	}
}
