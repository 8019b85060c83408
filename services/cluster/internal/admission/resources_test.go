package admission

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func resourcesOf(t *testing.T, text string) *structpb.Struct {
	t.Helper()
	if text == "" {
		return nil
	}
	s := &structpb.Struct{}
	if err := protojson.Unmarshal([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestQOSClass(t *testing.T) {
	const (
		full = `{"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "0.5", "memory": "134217728"}}`
		some = `{"requests": {"cpu": "100m"}}`
		only = `{"limits": {"cpu": 2, "memory": "1Gi"}}`
	)
	for _, tt := range []struct {
		what        string
		init, of    []string // resources of containers
		whole, want string
	}{
		{"nothing", nil, []string{""}, "", BestEffort},
		{"equal amounts, spelled differently", nil, []string{full}, "", Guaranteed},
		{"a number and a string", nil, []string{`{"limits": {"cpu": 0.1, "memory": "1Gi"}, "requests": {"cpu": "100m"}}`}, "", Guaranteed},
		{"limits are requests", nil, []string{only}, "", Guaranteed},
		{"one container without", nil, []string{full, ""}, "", Burstable},
		{"an init container without", []string{""}, []string{full}, "", Burstable},
		{"an init container with", []string{only}, []string{full}, "", Guaranteed},
		{"a request only", nil, []string{some}, "", Burstable},
		{"no memory", nil, []string{`{"limits": {"cpu": "1"}}`}, "", Burstable},
		{"unequal", nil, []string{`{"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0.5"}}`}, "", Burstable},
		{"zeros", nil, []string{`{"limits": {"cpu": 0, "memory": "0"}}`}, "", BestEffort},
		{"a request of zero is stated", nil, []string{`{"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": 0}}`}, "", Burstable},
		{"others do not count", nil, []string{`{"limits": {"ephemeral-storage": "1Gi"}}`}, "", BestEffort},
		{"of the Pod as a whole", nil, []string{""}, full, Guaranteed},
		{"the Pod's decide", nil, []string{full}, some, Burstable},
	} {
		spec := &objectv1.PodSpec{Resources: resourcesOf(t, tt.whole)}
		for _, text := range tt.init {
			spec.InitContainers = append(spec.InitContainers, &objectv1.Container{Resources: resourcesOf(t, text)})
		}
		for _, text := range tt.of {
			spec.Containers = append(spec.Containers, &objectv1.Container{Resources: resourcesOf(t, text)})
		}
		if got := qosClass(spec); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, got, tt.want)
		}
	}
}

// The class is there from the beginning, and no report of an agent, which does not know it, takes it away.
func TestQOSClassStays(t *testing.T) {
	o := &objectv1.Pod{Spec: &objectv1.PodSpec{Containers: []*objectv1.Container{{Name: "c", Image: "x", Resources: resourcesOf(t, `{"limits": {"cpu": 1}}`)}}}}
	DefaultPod(o, nil)
	if o.GetStatus().GetQosClass() != Burstable || o.GetStatus().GetPhase() != Pending {
		t.Errorf("a new Pod's status is %v", o.GetStatus())
	}
	report := &objectv1.Pod{Spec: o.Spec, Status: &objectv1.PodStatus{Phase: Running}}
	CarryPodStatus(report, o)
	if report.GetStatus().GetQosClass() != Burstable || report.GetStatus().GetPhase() != Running {
		t.Errorf("after a report it is %v", report.GetStatus())
	}
}

func TestResourceAmounts(t *testing.T) {
	var v violations
	v.resources("r", resourcesOf(t, `{
		"limits": {"cpu": "1", "memory": "1Gi", "example.com/gpu": 1},
		"requests": {"cpu": "1500m", "memory": "-1", "example.com/gpu": 1, "hugepages-2Mi": "two"}}`))
	want := []string{
		`r.requests[hugepages-2Mi]: "two": must be a quantity such as 100m or 1Gi`,
		`r.requests[memory]: "-1": must be greater than or equal to 0`,
		`r.requests: "1500m": must be less than or equal to cpu limit of 1`,
	}
	if len(v) != len(want) {
		t.Fatalf("%v", v)
	}
	for i, w := range want {
		if got := v[i].Field + `: "` + v[i].Value + `": ` + v[i].Rule; got != w {
			t.Errorf("%s, want %s", got, w)
		}
	}
}

func TestQuantities(t *testing.T) {
	for text, want := range map[string]string{
		"1": "1", "0.5": "1/2", "500m": "1/2", "1k": "1000", "1Ki": "1024", "1.5Gi": "1610612736", "1e3": "1000", "1E3": "1000", "1E": "1000000000000000000",
		"12e-1": "6/5", ".5": "1/2", "5.": "5", "100n": "1/10000000", "-2": "-2", "+2": "2",
		"": "", "m": "", "1 ": "", "1mm": "", "1K": "", "1ki": "", "0x1": "", "1/2": "", "1e999": "", "1_000": "", "Inf": "",
	} {
		q, ok := parseQuantity(text)
		got := ""
		if ok {
			got = q.RatString()
		}
		if got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"1", "500m", "1.5Gi", "1e3", ".5", "5.", "-2Ki", "e", "1e-99"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, ok := parseQuantity(text)
		if !ok {
			return
		}
		if q.Sign() != 0 && strings.HasPrefix(text, "-") != (q.Sign() < 0) {
			t.Errorf("%q has the sign of %s", text, q.RatString())
		}
		if len(q.RatString()) > 300 {
			t.Errorf("%q makes a number of %d digits", text, len(q.RatString()))
		}
	})
}
