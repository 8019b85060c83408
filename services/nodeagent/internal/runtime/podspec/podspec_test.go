package podspec

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"podwire.dev/internal/errs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func TestExpand(t *testing.T) {
	lookup := func(n string) (string, bool) {
		v, ok := map[string]string{"A": "a", "B": "$(A)", "": "never"}[n]
		return v, ok && n != ""
	}
	for in, want := range map[string]string{
		"":          "",
		"plain":     "plain",
		"$(A)":      "a",
		"x$(A)y":    "xay",
		"$(A)$(A)":  "aa",
		"$(B)":      "$(A)",
		"$(NO)":     "$(NO)",
		"$$(A)":     "$(A)",
		"$$$(A)":    "$a",
		"$":         "$",
		"$$":        "$",
		"$A":        "$A",
		"$(A":       "$(A",
		"$()":       "$()",
		"a$":        "a$",
		"$($(A))":   "$($(A))",
		"--x=$(A):": "--x=a:",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "$(A)", "$$(A)", "$(", "$)$", "a$$$(A)b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		none := Expand(s, func(string) (string, bool) { return "", false })
		if len(none) > len(s) || strings.ReplaceAll(none, "$", "") != strings.ReplaceAll(s, "$", "") {
			t.Errorf("%q: nothing is known, yet %q", s, none)
		}
		if !strings.Contains(s, "$") && none != s {
			t.Errorf("%q changed to %q", s, none)
		}
	})
}

func value(t *testing.T, v any) *structpb.Value {
	t.Helper()
	out, err := structpb.NewValue(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ptr[T any](v T) *T { return &v }

func TestFromObjectFillsDefaultsIn(t *testing.T) {
	o := &objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Namespace: "ns", Name: "web", Uid: "u-1"},
		Spec: &objectv1.PodSpec{
			SecurityContext: value(t, map[string]any{"runAsUser": 5, "fsGroup": 7}).GetStructValue(),
			Containers: []*objectv1.Container{{
				Name: "c", Image: "podwire.dev/echo",
				Ports:           []*objectv1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 53, Protocol: ptr("UDP")}},
				SecurityContext: value(t, map[string]any{"runAsUser": 6}).GetStructValue(),
				ReadinessProbe:  &objectv1.Probe{HttpGet: &objectv1.HTTPGetAction{Port: value(t, "http")}},
				LivenessProbe:   &objectv1.Probe{TcpSocket: &objectv1.TCPSocketAction{Port: value(t, 80)}, TerminationGracePeriodSeconds: ptr(int32(0))},
				Env: []*objectv1.EnvVar{
					{Name: "NAME", ValueFrom: value(t, map[string]any{"fieldRef": map[string]any{"fieldPath": "metadata.name"}}).GetStructValue()},
					{Name: "OPT", ValueFrom: value(t, map[string]any{"secretKeyRef": map[string]any{"optional": true}}).GetStructValue()},
					{Name: "IP", ValueFrom: value(t, map[string]any{"fieldRef": map[string]any{"fieldPath": "status.podIP"}}).GetStructValue()},
					{Name: "BOTH", Value: "$(NAME)@$(IP)"},
				},
				Args: []string{"$(BOTH)"},
			}},
		},
	}
	p, err := FromObject(o)
	if err != nil {
		t.Fatal(err)
	}
	c := p.Containers[0]
	if p.RestartPolicy != RestartAlways || p.GracePeriod != 30*time.Second || p.DNS.Policy != "ClusterFirst" || c.Problem != "" {
		t.Errorf("%+v", p)
	}
	if want := (Probe{Handler: Handler{HTTP: &HTTPGet{Scheme: "HTTP", Port: "http", Path: "/"}}, Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3, GracePeriod: -1}); !reflect.DeepEqual(*c.Readiness, want) {
		t.Errorf("%+v, want %+v", *c.Readiness, want)
	}
	if c.Liveness.GracePeriod != 0 || c.Liveness.Handler.TCP.Port != "80" {
		t.Errorf("%+v", c.Liveness)
	}
	if !reflect.DeepEqual(c.User, User{UID: 6, GID: -1, Groups: []int{7}}) {
		t.Errorf("%+v", c.User)
	}
	if n, err := c.PortNumber("http"); n != 80 || err != nil {
		t.Error(n, err)
	}
	if _, err := c.PortNumber("nope"); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	r := p.Resolve(c, Facts{PodIPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}})
	if strings.Join(r.Env, " ") != "NAME=web IP=10.1.2.3 BOTH=web@10.1.2.3" || r.Args[0] != "web@10.1.2.3" {
		t.Errorf("%+v", r)
	}
}

// TestHooks: a sleep of no time is allowed, and no action of no kind.
func TestHooks(t *testing.T) {
	for name, tt := range map[string]struct {
		in   *objectv1.LifecycleHandler
		want *Handler
	}{
		"none":       {nil, nil},
		"sleep":      {&objectv1.LifecycleHandler{Sleep: &objectv1.SleepAction{Seconds: 5}}, &Handler{Sleep: 5 * time.Second}},
		"sleep of 0": {&objectv1.LifecycleHandler{Sleep: &objectv1.SleepAction{}}, nil},
		"exec":       {&objectv1.LifecycleHandler{Exec: &objectv1.ExecAction{Command: []string{"true"}}}, &Handler{Exec: []string{"true"}}},
	} {
		p, err := FromObject(&objectv1.Pod{
			Metadata: &objectv1.ObjectMeta{Namespace: "ns", Name: "web", Uid: "u-1"},
			Spec: &objectv1.PodSpec{Containers: []*objectv1.Container{
				{Name: "c", Image: "podwire.dev/echo", Lifecycle: &objectv1.Lifecycle{PostStart: tt.in, PreStop: tt.in}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if c := p.Containers[0]; !reflect.DeepEqual(c.PreStop, tt.want) || !reflect.DeepEqual(c.PostStart, tt.want) {
			t.Errorf("%s: %+v and %+v, want %+v", name, c.PostStart, c.PreStop, tt.want)
		}
	}
}

func TestFromObjectRefuses(t *testing.T) {
	_, err := FromObject(&objectv1.Pod{
		Metadata: &objectv1.ObjectMeta{Uid: "../../etc"},
		Spec: &objectv1.PodSpec{
			Containers:  []*objectv1.Container{{Name: "a"}, {Name: "a"}, {Name: "x/y"}},
			HostAliases: []*objectv1.HostAlias{{Ip: "nope"}},
			DnsConfig:   &objectv1.PodDNSConfig{Nameservers: []string{"1.2.3"}},
		},
	})
	var fields []string
	for _, v := range errs.ViolationsOf(err) {
		fields = append(fields, v.Field)
	}
	want := "spec.dnsConfig.nameservers[0] spec.hostAliases[0].ip metadata.uid spec.containers[1].name spec.containers[2].name"
	if strings.Join(fields, " ") != want {
		t.Errorf("%v, want %s", fields, want)
	}
}
