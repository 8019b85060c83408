package runtime

import (
	"testing"
	"time"
)

func TestBackoffGrowsAndForgets(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var b Backoff
	if !b.Ready(now).Equal(now) {
		t.Error("the first restart has to be immediate")
	}
	for i, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		b = b.Restart(now, now)
		now = now.Add(time.Second)
		if got := b.Ready(now).Sub(now); got != want*time.Second {
			t.Errorf("restart %d: wait %s, want %ds", i, got, want)
		}
	}
	now = now.Add(resetAfter + time.Second)
	if !b.Ready(now).Equal(now) {
		t.Error("a container that ran for ten minutes starts anew")
	}
	if b = b.Restart(now, now); b.Delay != firstDelay {
		t.Errorf("%+v", b)
	}
}

func TestPlanImage(t *testing.T) {
	host := shellPod("p", "x").Containers[0]
	for _, c := range []struct {
		image string
		kind  initKind
		subst Substitution
		want  program
		sub   string
	}{
		{EchoImage, regular, SubstituteNever, echoServer, ""},
		{EchoImage + ":v1", regular, SubstituteNever, echoServer, ""},
		{EchoImage + "@sha256:0", regular, SubstituteImages, echoServer, ""},
		{HostImage, regular, SubstituteNever, hostCommand, ""},
		{HostImage + "ile", regular, SubstituteNever, nothing, ""},
		{"nginx", regular, SubstituteNever, nothing, ""},
		{"nginx", regular, SubstituteImages, echoServer, "nginx"},
		{"nginx", sidecar, SubstituteImages, echoServer, "nginx"},
		{"nginx", initStep, SubstituteImages, succeed, "nginx"},
	} {
		in := host
		in.Image = c.image
		if got := planImage(in, c.kind, c.subst); got.program != c.want || got.substituted != c.sub || (got.message == "") != (c.want != nothing) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	host.User.NonRoot = true
	if got := planImage(host, regular, SubstituteNever); got.reason != reasonConfig {
		t.Errorf("runAsNonRoot without a user: %+v", got)
	}
}
