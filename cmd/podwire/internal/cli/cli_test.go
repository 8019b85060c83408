package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"podwire.dev/internal/manifest"
)

const onePod = `
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec: {nodeName: node-1, containers: [{name: c, image: podwire.dev/echo}]}
`

// TestReadsAreRepeatedWhileAServiceIsAway has the service away for longer than gRPC's own four attempts.
func TestReadsAreRepeatedWhileAServiceIsAway(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.objects = f.load(onePod)
	f.failures["podwire.cluster.v1.PodService/List"] = 6
	if got := f.run(t.Context(), nil, "get", "pods", "-o", "name"); got.status != 0 || got.out != "pod/web\n" {
		t.Errorf("%+v", got)
	}
}

// TestReadsEndWithTheirDeadline: what is said in the end is what the service's absence looked like, and not the deadline.
func TestReadsEndWithTheirDeadline(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.failures["podwire.cluster.v1.PodService/List"] = 1 << 30
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if got := f.run(ctx, nil, "get", "pods"); got.status != 1 || !strings.Contains(got.err, "cluster is away") {
		t.Errorf("%+v", got)
	}
}

// TestWritesAreSentOnce: a write whose answer was lost may have been done.
func TestWritesAreSentOnce(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.objects = f.load(onePod)
	f.failures["podwire.cluster.v1.PodService/Delete"] = 1
	got := f.run(t.Context(), nil, "delete", "pod", "web")
	if got.status != 1 || !strings.Contains(got.err, "cluster is away") {
		t.Errorf("%+v", got)
	}
	if got := f.run(t.Context(), nil, "get", "pods", "-o", "name"); got.out != "pod/web\n" {
		t.Errorf("%+v", got)
	}
}

// TestWaitsGoOnWhereAStreamBreaks covers watches and receipts.
func TestWaitsGoOnWhereAStreamBreaks(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.objects = f.load(strings.Replace(onePod, "name: web,", "name: web, resourceVersion: '5',", 1) +
		"status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}\n")
	f.canned["podwire.cluster.v1.ReceiptService/Wait"] = []string{`{"done": true}`}
	f.failures["podwire.cluster.v1.PodService/Watch"] = 2
	f.failures["podwire.cluster.v1.ReceiptService/Wait"] = 2
	if got := f.run(t.Context(), nil, "wait", "pod/web"); got.status != 0 || got.err != "" {
		t.Errorf("%+v", got)
	}
}

// TestApplyStopsCheckingWhereAServiceIsAway: each further document would wait as long.
func TestApplyStopsCheckingWhereAServiceIsAway(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.failures["podwire.cluster.v1.NamespaceService/Apply"] = 1
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n"
	got := f.run(t.Context(), strings.NewReader(yaml), "apply", "-f", "-")
	if got.status != 1 || len(f.calls) != 1 || !strings.Contains(got.err, "nothing was written") {
		t.Errorf("%+v after %q", got, f.calls)
	}
}

func TestGetWatch(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.objects = f.load(onePod)
	f.later = f.load(strings.Replace(onePod, "name: web,", "name: a-longer-name,", 1) + "---\n" +
		strings.Replace(onePod, "name: web,", "name: web, annotations: {test/deleted: 'yes'},", 1))
	ctx, cancel := context.WithTimeout(t.Context(), storyTime)
	defer cancel()
	out := &until{want: "deleted\n", then: cancel}
	a := &app{Session: f, out: out, err: &bytes.Buffer{}, kinds: f.kinds, now: func() time.Time { return testNow }}
	root := rootOf(a)
	root.SetArgs([]string{"get", "pods", "-w"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Error(err)
	}
	want := "NAME   READY   STATUS    RESTARTS   AGE\n" +
		"web    0/1     Pending   0          <unknown>\n" +
		"a-longer-name   0/1     Pending   0          <unknown>\n" +
		"web             0/1     Pending   0          <unknown>   deleted\n"
	if out.all.String() != want {
		t.Errorf("got\n%swant\n%s", out.all.String(), want)
	}
}

// until calls then once what was written ends with want.
type until struct {
	all  bytes.Buffer
	want string
	then func()
}

func (u *until) Write(b []byte) (int, error) {
	n, err := u.all.Write(b)
	if strings.HasSuffix(u.all.String(), u.want) {
		u.then()
	}
	return n, err
}

func TestAge(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 125 * time.Second: "2m5s",
		10*time.Minute + time.Second: "10m", 179 * time.Minute: "179m", 3 * time.Hour: "3h", 3*time.Hour + 5*time.Minute: "3h5m",
		8*time.Hour + time.Minute: "8h", 47 * time.Hour: "47h", 2 * day: "2d", 2*day + 3*time.Hour: "2d3h", 9*day + time.Hour: "9d",
		729 * day: "729d", 2 * year: "2y", 2*year + 40*day: "2y40d", 9*year + day: "9y",
	} {
		if got := age(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}

func TestPodStatus(t *testing.T) {
	t.Parallel()
	f := &fakeCluster{t: t}
	var err error
	if f.kinds, err = manifest.Builtin(); err != nil {
		t.Fatal(err)
	}
	for status, want := range map[string]string{
		"{}":                               "Pending",
		"{phase: Running}":                 "Running",
		"{phase: Failed, reason: Evicted}": "Evicted",
		"{phase: Running, containerStatuses: [{name: a, state: {terminated: {exitCode: 0, reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}": "Running",
		"{phase: Running, containerStatuses: [{name: a, state: {terminated: {exitCode: 3}}}, {name: b, ready: true, state: {running: {}}}]}":                    "ExitCode:3",
		"{phase: Running, containerStatuses: [{name: a, state: {waiting: {reason: One}}}, {name: b, state: {waiting: {reason: Two}}}]}":                         "One",
	} {
		pod := f.load("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\nstatus: " + status + "\n")
		if got := podStatus(pod[0].Message, testNow); got != want {
			t.Errorf("%s: %s, want %s", status, got, want)
		}
	}
}

func TestProgressIsOneLineOnATerminalAndNothingElsewhere(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := progressLine{w: &out}
	p.say("waiting for %s", "a")
	p.say("waiting for %s", "a")
	p.say("waiting for b\nand c")
	p.say("%s", strings.Repeat("x", 200))
	p.clear()
	p.clear()
	want := "\r\x1b[Kwaiting for a\r\x1b[Kwaiting for b…\r\x1b[K" + strings.Repeat("x", lineWidth-1) + "…\r\x1b[K"
	if out.String() != want {
		t.Errorf("got %q", out.String())
	}
	quiet := progressLine{}
	quiet.say("nothing")
	quiet.clear()
}
