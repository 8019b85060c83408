package receipts

import (
	"math"
	"testing"

	"podwire.dev/internal/store"
)

func TestRequired(t *testing.T) {
	marks := []store.Watermark{{Service: "cluster", Revision: 7}, {Service: "policy", Revision: 5}, {Service: "ipam", Revision: 1}}
	for _, c := range []struct {
		name     string
		required []string
		marks    []store.Watermark
		want     store.Revision
	}{
		{"the lowest", []string{"cluster", "policy"}, marks, 5},
		{"one without a watermark holds everything back", []string{"cluster", "svcproxy"}, marks, 0},
		{"nothing known yet", []string{"cluster"}, nil, 0},
		{"none required holds nothing back", nil, marks, math.MaxInt64},
	} {
		t.Run(c.name, func(t *testing.T) {
			tracker := NewTracker(nil, c.required)
			tracker.set(c.marks)
			if got := tracker.Required(); got != c.want {
				t.Errorf("required is %d, want %d", got, c.want)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	refused := store.Laggard{Node: "n1", Revision: 3, Refused: 4, Reason: "no", Through: 5}
	list := []store.Watermark{{Service: "cluster", Revision: 3, Laggards: []store.Laggard{{Node: "n2", Revision: 4}, refused}}, {Service: "policy", Revision: 9}}
	p := ProgressOf(list, []string{"policy", "cluster"}, 5)
	if p.Done || len(p.Services) != 2 || p.Services[0].Service != "policy" || p.Refusal == nil || p.Refusal.Service != "cluster" || p.Refusal.Laggard != refused {
		t.Errorf("progress to 5 is %+v", p)
	}
	if p := ProgressOf(list, []string{"policy", "cluster"}, 6); p.Done || p.Refusal != nil {
		t.Errorf("6 may mend what was refused; progress to it is %+v", p)
	}
	if p := ProgressOf(list, []string{"policy", "cluster"}, 3); !p.Done || p.Refusal != nil {
		t.Errorf("progress to 3 is %+v", p)
	}
	if p := ProgressOf(nil, []string{"ipam"}, 1); p.Done || p.Services[0].Service != "ipam" || p.Services[0].Revision != 0 {
		t.Errorf("progress without watermarks is %+v", p)
	}
}
