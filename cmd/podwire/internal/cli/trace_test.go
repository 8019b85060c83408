package cli

import (
	"strings"
	"testing"

	tracev1 "podwire.dev/proto/podwire/trace/v1"
)

func hop(id, parent, process, name, object string) *tracev1.Hop {
	return &tracev1.Hop{SpanId: id, ParentSpanId: parent, Process: process, Name: name, Object: object, DurationNanos: 1000}
}

func oneTrace() []*tracev1.Hop {
	return []*tracev1.Hop{
		hop("c1", "s1", "node-1", "kernel commit", "services/default/a"),
		hop("a", "cli", "svcproxy", "serve X/Apply", ""),
		hop("alloc", "a", "svcproxy", "call Y/Allocate", ""),
		hop("claim", "alloc", "ipam", "store.commit", "claims/a"),
		hop("s1", "a", "svcproxy", "store.commit", "services/default/a"),
		hop("derive", "s1", "svcproxy", "derive", "slices/default/a-1"),
		hop("b", "cli", "svcproxy", "serve X/Apply", ""),
		hop("s2", "b", "svcproxy", "store.commit", "services/default/b"),
		hop("dry", "cli", "svcproxy", "serve X/Apply", ""),
	}
}

func TestTraceOfOneObjectLeavesTheOthersOfTheSameCommandOut(t *testing.T) {
	got := concerning(oneTrace(), "services/default/a")
	var names []string
	for _, h := range got {
		names = append(names, h.GetSpanId())
	}
	if text := strings.Join(names, " "); text != "c1 a alloc claim s1 derive" {
		t.Errorf("kept %s", text)
	}
}

func TestTraceTree(t *testing.T) {
	want := `svcproxy   serve X/Apply  1µs
  ├─ svcproxy   call Y/Allocate  1µs
  │  └─ ipam       store.commit claims/a  1µs
  └─ svcproxy   store.commit services/default/a  1µs
     ├─ node-1     kernel commit services/default/a  1µs
     └─ svcproxy   derive slices/default/a-1  1µs`
	got := strings.Join(tree(concerning(oneTrace(), "services/default/a")), "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTraceTreeOfAnUnknownParentStandsAtTheLeft(t *testing.T) {
	got := tree([]*tracev1.Hop{hop("x", "nobody", "node-1", "kernel commit", "")})
	if len(got) != 1 || !strings.HasPrefix(got[0], "node-1") {
		t.Errorf("got %q", got)
	}
}
