package admission

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// podOf parses a Pod of a manifest and fills in the defaults.
func podOf(t *testing.T, spec string) *objectv1.Pod {
	t.Helper()
	kinds, err := manifest.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\nspec:\n"
	for line := range strings.SplitSeq(strings.TrimSpace(spec), "\n") {
		text += "  " + line + "\n"
	}
	objs, err := manifest.Parse(kinds, "test", strings.NewReader(text), manifest.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	o := objs[0].Message.(*objectv1.Pod)
	DefaultPod(o, nil)
	return o
}

var rules = Rules{ClusterDomain: "cluster.local"}

// lines prints violations one by one.
func lines(list []errs.Violation) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, "\n")
}

const plain = "containers: [{name: nginx, image: nginx:1.14.2, ports: [{containerPort: 80}]}]"

func TestDefaultPod(t *testing.T) {
	o := podOf(t, `
hostNetwork: true
containers:
- name: a
  image: registry.example:5000/nginx
  ports: [{containerPort: 80}]
  readinessProbe: {httpGet: {port: 80}}
- {name: b, image: "nginx:1.14.2"}
- {name: c, image: "nginx@sha256:0123"}
- {name: d, image: "nginx:latest"}`)
	s := o.GetSpec()
	if s.GetRestartPolicy() != "Always" || s.GetDnsPolicy() != "ClusterFirst" || s.GetTerminationGracePeriodSeconds() != 30 ||
		!s.GetEnableServiceLinks() || s.GetSchedulerName() != "default-scheduler" {
		t.Errorf("defaults of the spec are %v", s)
	}
	if o.GetStatus().GetPhase() != Pending {
		t.Errorf("a new Pod is %q", o.GetStatus().GetPhase())
	}
	for i, want := range []string{"Always", "IfNotPresent", "IfNotPresent", "Always"} {
		if got := s.Containers[i].GetImagePullPolicy(); got != want {
			t.Errorf("%s is pulled %s, want %s", s.Containers[i].GetImage(), got, want)
		}
	}
	a := s.Containers[0]
	if a.Ports[0].GetProtocol() != "TCP" || a.Ports[0].GetHostPort() != 80 {
		t.Errorf("port is %v, want TCP, and with hostNetwork the hostPort of the containerPort", a.Ports[0])
	}
	p := a.GetReadinessProbe()
	if p.GetTimeoutSeconds() != 1 || p.GetPeriodSeconds() != 10 || p.GetSuccessThreshold() != 1 || p.GetFailureThreshold() != 3 ||
		p.GetHttpGet().GetPath() != "/" || p.GetHttpGet().GetScheme() != "HTTP" {
		t.Errorf("defaults of the probe are %v", p)
	}
	if v := rules.ValidatePod(o, nil); len(v) > 0 {
		t.Errorf("what the defaults make is invalid: %s", lines(v))
	}
	again := proto.Clone(o).(*objectv1.Pod)
	DefaultPod(again, o)
	if !proto.Equal(again, o) {
		t.Error("defaults on defaults change something")
	}
}

func TestValidatePod(t *testing.T) {
	container := func(more string) string { return "containers: [{name: c, image: i, " + more + "}]" }
	cases := []struct{ name, spec, want string }{
		{"the documented example", plain, ""},
		{"no containers", "restartPolicy: Never", "spec.containers: is required: a Pod has at least one container"},
		{"no name and no image", "containers: [{args: [x]}]", "spec.containers[0].name: is required\nspec.containers[0].image: is required"},
		{"names are labels", "containers: [{name: A_b, image: i}]", `spec.containers[0].name: "A_b": ` + names.DNSLabel("_")},
		{"names are unique, init containers included", "initContainers: [{name: c, image: i}]\ncontainers: [{name: c, image: i}]",
			`spec.containers[0].name: "c": must be unique among the containers and init containers of the Pod`},
		{"image with a space", "containers: [{name: c, image: ' i'}]", `spec.containers[0].image: " i": must not have leading or trailing whitespace`},
		{"port out of range", container("ports: [{containerPort: 70000}]"), `spec.containers[0].ports[0].containerPort: "70000": must be between 1 and 65535, inclusive`},
		{"port name", container("ports: [{name: UPPER, containerPort: 1}]"),
			`spec.containers[0].ports[0].name: "UPPER": must contain only lower case letters, digits and hyphens`},
		{"port name too long", container("ports: [{name: a-name-of-16-char, containerPort: 1}]"), `spec.containers[0].ports[0].name: "a-name-of-16-char": must be between 1 and 15 characters`},
		{"port names are unique", container("ports: [{name: x, containerPort: 1}, {name: x, containerPort: 2}]"),
			`spec.containers[0].ports[1].name: "x": must be unique among the ports of the container`},
		{"one port in two protocols", container("ports: [{containerPort: 53}, {containerPort: 53, protocol: UDP}]"), ""},
		{"protocol", container("ports: [{containerPort: 1, protocol: ICMP}]"), `spec.containers[0].ports[0].protocol: "ICMP": must be one of TCP, UDP, SCTP`},
		{"host ports are unique", container("ports: [{containerPort: 1, hostPort: 8}, {containerPort: 2, hostPort: 8}]"),
			`spec.containers[0].ports[1].hostPort: "8": must be unique among the ports of the Pod`},
		{"host port with hostNetwork", "hostNetwork: true\n" + container("ports: [{containerPort: 1, hostPort: 8}]"),
			`spec.containers[0].ports[0].hostPort: "8": must match ` + "`containerPort` when `hostNetwork` is true"},
		{"restartPolicy", plain + "\nrestartPolicy: Sometimes", `spec.restartPolicy: "Sometimes": must be one of Always, OnFailure, Never`},
		{"grace period", plain + "\nterminationGracePeriodSeconds: -1", `spec.terminationGracePeriodSeconds: "-1": must be greater than or equal to 0`},
		{"deadline", plain + "\nactiveDeadlineSeconds: 0", `spec.activeDeadlineSeconds: "0": must be greater than or equal to 1`},
		{"dnsPolicy None", plain + "\ndnsPolicy: None", "spec.dnsConfig.nameservers: must provide at least one DNS nameserver when dnsPolicy is None"},
		{"nameserver", plain + "\ndnsConfig: {nameservers: [one]}", `spec.dnsConfig.nameservers[0]: "one": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`},
		{"four nameservers", plain + "\ndnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}",
			`spec.dnsConfig.nameservers: "1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4": must not have more than 3 nameservers`},
		{"nodeName", plain + "\nnodeName: Node_1", `spec.nodeName: "Node_1": ` + names.DNSSubdomain("_")},
		{"hostname and subdomain", plain + "\nhostname: a.b\nsubdomain: -x", `spec.hostname: "a.b": ` + names.DNSLabel("_") + "\n" + `spec.subdomain: "-x": ` + names.DNSLabel("_")},
		{"host aliases", plain + "\nhostAliases: [{ip: 127.0.0.1, hostnames: [foo.local]}, {ip: x, hostnames: [B]}]",
			`spec.hostAliases[1].ip: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)` + "\n" + `spec.hostAliases[1].hostnames[0]: "B": ` + names.DNSSubdomain("_")},
		{"env names", container("env: [{name: 'a b', value: x}, {name: 'a=b', value: x}]"),
			`spec.containers[0].env[1].name: "a=b": must consist only of printable ASCII characters other than '='`},
		{"env with both", container("env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"),
			"spec.containers[0].env[0].valueFrom: may not be specified when `value` is not empty"},
		{"probe without action", container("livenessProbe: {periodSeconds: 3}"), "spec.containers[0].livenessProbe: must specify a handler type"},
		{"probe with two", container("livenessProbe: {exec: {command: [x]}, tcpSocket: {port: 1}}"), "spec.containers[0].livenessProbe: may not specify more than 1 handler type"},
		{"liveness success threshold", container("livenessProbe: {successThreshold: 2, exec: {command: [x]}}"),
			`spec.containers[0].livenessProbe.successThreshold: "2": must be 1`},
		{"readiness grace", container("readinessProbe: {terminationGracePeriodSeconds: 2, exec: {command: [x]}}"),
			`spec.containers[0].readinessProbe.terminationGracePeriodSeconds: "2": must not be set for readinessProbes`},
		{"named probe port", container("ports: [{name: web, containerPort: 80}], readinessProbe: {httpGet: {port: web}}"), ""},
		{"probe port that is not there", container("readinessProbe: {httpGet: {port: web}}"),
			`spec.containers[0].readinessProbe.httpGet.port: "web": must be the number of a port or the name of one of the container's ports`},
		{"probe on an init container", "initContainers: [{name: i, image: i, livenessProbe: {exec: {command: [x]}}}]\n" + plain,
			"spec.initContainers[0].livenessProbe: may not be set for init containers without restartPolicy=Always"},
		{"probe on a sidecar", "initContainers: [{name: i, image: i, restartPolicy: Always, livenessProbe: {exec: {command: [x]}}}]\n" + plain, ""},
		{"hook", container("lifecycle: {preStop: {}}"), "spec.containers[0].lifecycle.preStop: must specify a handler type"},
		{"toleration of everything", plain + "\ntolerations: [{operator: Exists}]", ""},
		{"toleration without key", plain + "\ntolerations: [{value: x}]", "spec.tolerations[0].operator: must be Exists when `key` is empty, which means \"match all values and all keys\""},
		{"toleration with Exists and a value", plain + "\ntolerations: [{key: k, operator: Exists, value: x}]", "spec.tolerations[0].value: \"x\": must be empty when `operator` is Exists"},
		{"tolerationSeconds", plain + "\ntolerations: [{key: k, operator: Exists, effect: NoSchedule, tolerationSeconds: 3}]",
			"spec.tolerations[0].effect: \"NoSchedule\": must be NoExecute when `tolerationSeconds` is set"},
		{"gate and node", plain + "\nnodeName: n1\nschedulingGates: [{name: example.com/foo}]", `spec.nodeName: "n1": cannot be set until all schedulingGates have been cleared`},
		{"name of the host too long for Linux", plain + "\nsetHostnameAsFQDN: true\nsubdomain: " + strings.Repeat("s", 40),
			`spec.setHostnameAsFQDN: "web.` + strings.Repeat("s", 40) + `.default.svc.cluster.local": the name would have 70 characters, and Linux allows 64 for the name of a host`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := lines(rules.ValidatePod(podOf(t, c.spec), nil)); got != c.want {
				t.Errorf("violations:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestUpdatePod(t *testing.T) {
	forbidden := func(fields string) string { return fmt.Sprintf("spec: %q: %s", fields, ruleImmutable) }
	const gated = plain + "\nschedulingGates: [{name: g}]"
	cases := []struct{ name, old, now, want string }{
		{"nothing", plain, plain, ""},
		{"image", plain, strings.Replace(plain, "1.14.2", "latest", 1), ""},
		{"a port", plain, strings.Replace(plain, "80", "81", 1), forbidden("spec.containers")},
		{"another container", plain, "containers: [{name: nginx, image: nginx:1.14.2, ports: [{containerPort: 80}]}, {name: b, image: b}]", forbidden("spec.containers")},
		{"two fields", plain, plain + "\nhostname: h\nrestartPolicy: Never", forbidden("spec.restartPolicy, spec.hostname")},
		{"a Pod never moves", plain + "\nnodeName: a", plain + "\nnodeName: b", forbidden("spec.nodeName")},
		{"node left out", plain + "\nnodeName: a", plain, ""},
		{"grace period", plain, plain + "\nterminationGracePeriodSeconds: 5", forbidden("spec.terminationGracePeriodSeconds")},
		{"a deadline is set", plain, plain + "\nactiveDeadlineSeconds: 9", ""},
		{"and lowered", plain + "\nactiveDeadlineSeconds: 9", plain + "\nactiveDeadlineSeconds: 8", ""},
		{"not raised", plain + "\nactiveDeadlineSeconds: 9", plain + "\nactiveDeadlineSeconds: 10", `spec.activeDeadlineSeconds: "10": must be less than or equal to previous value`},
		{"not taken back", plain + "\nactiveDeadlineSeconds: 9", plain, "spec.activeDeadlineSeconds: must not update from a positive integer to nil value"},
		{"toleration added", plain + "\ntolerations: [{key: a, operator: Exists}]", plain + "\ntolerations: [{key: b, operator: Exists}, {key: a, operator: Exists}]", ""},
		{"toleration removed", plain + "\ntolerations: [{key: a, operator: Exists}]", plain, forbidden("spec.tolerations")},
		{"gate removed", gated, plain, ""},
		{"gate added", plain, gated, `spec.schedulingGates: "g": may not be added: gates can be removed only`},
		{"selector narrowed behind a gate", gated, gated + "\nnodeSelector: {a: b}", ""},
		{"selector narrowed without", plain, plain + "\nnodeSelector: {a: b}", forbidden("spec.nodeSelector")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			old, now := podOf(t, c.old), podOf(t, c.now)
			before := proto.Clone(old)
			for _, list := range now.Spec.Containers {
				list.ImagePullPolicy = nil
			}
			CarryPod(now, old)
			DefaultPod(now, old)
			if got := lines(rules.ValidatePod(now, old)); got != c.want {
				t.Errorf("violations:\n%s\nwant:\n%s", got, c.want)
			}
			if !proto.Equal(before, old) {
				t.Error("the old object was changed")
			}
		})
	}
}

func TestGracePeriod(t *testing.T) {
	ptr := func(n int32) *int32 { return &n }
	cases := []struct {
		name  string
		spec  string
		phase string
		asked *int32
		want  int32
	}{
		{"its own", plain + "\nnodeName: n1\nterminationGracePeriodSeconds: 7", Running, nil, 7},
		{"the default", plain + "\nnodeName: n1", Running, nil, 30},
		{"asked for", plain + "\nnodeName: n1", Running, ptr(3), 3},
		{"by force", plain + "\nnodeName: n1", Running, ptr(0), 0},
		{"runs nowhere", plain, Pending, ptr(3), 0},
		{"runs no more", plain + "\nnodeName: n1", Succeeded, nil, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := podOf(t, c.spec)
			o.Status.Phase = c.phase
			if got := GracePeriod(o, c.asked); got != c.want {
				t.Errorf("grace is %d, want %d", got, c.want)
			}
		})
	}
}

func TestPodStatus(t *testing.T) {
	status := func(s *objectv1.PodStatus) string { return lines(ValidatePodStatus(&objectv1.Pod{Status: s})) }
	ips := func(list ...string) (out []*objectv1.PodIP) {
		for _, ip := range list {
			out = append(out, &objectv1.PodIP{Ip: ip})
		}
		return out
	}
	cases := []struct {
		name   string
		status *objectv1.PodStatus
		want   string
	}{
		{"dual stack", &objectv1.PodStatus{Phase: Running, PodIp: "10.0.0.1", PodIps: ips("10.0.0.1", "fd00::1")}, ""},
		{"two of a family", &objectv1.PodStatus{Phase: Running, PodIp: "10.0.0.1", PodIps: ips("10.0.0.1", "10.0.0.2")},
			`status.podIPs[1].ip: "10.0.0.2": may specify no more than one IP for each IP family`},
		{"podIP is not the first", &objectv1.PodStatus{Phase: Running, PodIp: "10.0.0.2", PodIps: ips("10.0.0.1")}, `status.podIP: "10.0.0.2": must be the first of podIPs`},
		{"no address", &objectv1.PodStatus{Phase: Running, PodIp: "x", PodIps: ips("x")}, `status.podIPs[0].ip: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`},
		{"phase", &objectv1.PodStatus{Phase: "Resting"}, `status.phase: "Resting": must be one of Pending, Running, Succeeded, Failed, Unknown`},
		{"conditions", &objectv1.PodStatus{Phase: Running, Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}, {Type: "Ready", Status: "Yes"}}},
			`status.conditions[1].status: "Yes": must be one of True, False, Unknown` + "\n" + `status.conditions[1].type: "Ready": must be unique`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := status(c.status); got != c.want {
				t.Errorf("violations:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
	old := &objectv1.Pod{Status: &objectv1.PodStatus{Conditions: []*objectv1.PodCondition{{Type: "PodScheduled", Status: "True"}}}}
	o := &objectv1.Pod{Status: &objectv1.PodStatus{Conditions: []*objectv1.PodCondition{{Type: "Ready", Status: "True"}}}}
	CarryPodStatus(o, old)
	if len(o.Status.Conditions) != 2 {
		t.Errorf("conditions are %v: PodScheduled is lost", o.Status.Conditions)
	}
}

func TestNamespace(t *testing.T) {
	o := &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "shop"}}
	DefaultNamespace(o, nil)
	if o.Metadata.Labels[LabelNamespaceName] != "shop" || o.GetSpec().GetFinalizers()[0] != "kubernetes" || o.GetStatus().GetPhase() != Active {
		t.Errorf("a new Namespace is %v", o)
	}
	other := &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "shop", Labels: map[string]string{LabelNamespaceName: "bank"}}}
	DefaultNamespace(other, o)
	if got, want := lines(ValidateNamespace(other)), `metadata.labels[kubernetes.io/metadata.name]: "bank": must be shop`; got != want {
		t.Errorf("violations %s, want %s", got, want)
	}
	if len(other.Spec.Finalizers) != 1 {
		t.Error("an Apply without spec takes the finalizer away")
	}
	if got := lines(ValidateNamespaceStatus(o)); got != "" {
		t.Error(got)
	}
	o.Metadata.DeletionTimestamp = timestamppb.Now()
	if got := lines(ValidateNamespaceStatus(o)); !strings.HasPrefix(got, `status.phase: "Active": must be Terminating`) {
		t.Errorf("violations are %s", got)
	}
	if !Removable(o) {
		t.Error("Kubernetes' own finalizer keeps a Namespace")
	}
	o.Spec.Finalizers = append(o.Spec.Finalizers, "example.com/x")
	if Removable(o) {
		t.Error("somebody's finalizer does not keep a Namespace")
	}
}

func TestAgentKeepsWhatPeopleSaid(t *testing.T) {
	old := &objectv1.Node{
		Metadata: &objectv1.ObjectMeta{Name: "n", Labels: map[string]string{"disk": "ssd", "kubernetes.io/hostname": "old"}, Annotations: map[string]string{"note": "x"}},
		Spec:     &objectv1.NodeSpec{Unschedulable: true, Taints: []*objectv1.Taint{{Key: "k", Effect: "NoSchedule"}}},
	}
	o := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "n",
		Labels:      map[string]string{"kubernetes.io/hostname": "n", "node-restriction.kubernetes.io/pci": "yes", "x.node-restriction.kubernetes.io/y": "z"},
		Annotations: map[string]string{AnnotationAgentTarget: "host:7443"}}}
	CarryAgentNode(o, old)
	if !proto.Equal(o.Spec, old.Spec) {
		t.Errorf("an agent undoes a cordon or a taint: %v", o.Spec)
	}
	labels := o.Metadata.Labels
	if labels["disk"] != "ssd" || labels["kubernetes.io/hostname"] != "n" || len(labels) != 2 {
		t.Errorf("labels are %v", labels)
	}
	if o.Metadata.Annotations["note"] != "x" || o.Metadata.Annotations[AnnotationAgentTarget] != "host:7443" {
		t.Errorf("annotations are %v", o.Metadata.Annotations)
	}
	user := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "n"}}
	CarryNode(user, o)
	if user.Metadata.Annotations[AnnotationAgentTarget] != "host:7443" || len(user.Metadata.Annotations) != 1 {
		t.Errorf("annotations are %v, want the agent's target only", user.Metadata.Annotations)
	}
}

func TestNode(t *testing.T) {
	o := &objectv1.Node{Metadata: &objectv1.ObjectMeta{Name: "n"}, Spec: &objectv1.NodeSpec{
		Taints:   []*objectv1.Taint{{Key: "k", Effect: "NoSchedule"}, {Key: "k", Effect: "NoSchedule"}, {Effect: "Never"}},
		PodCidrs: []string{"10.0.0.0/24", "10.0.1.0/24", "x"}, PodCidr: "10.0.9.0/24",
	}}
	want := `spec.taints[1]: "k:NoSchedule": taints must be unique by key and effect pair
spec.taints[2].key: is required
spec.taints[2].effect: "Never": must be one of NoSchedule, PreferNoSchedule, NoExecute
spec.podCIDRs[1]: "10.0.1.0/24": may specify no more than one CIDR for each IP family
spec.podCIDRs[2]: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
spec.podCIDR: "10.0.9.0/24": must be the first of podCIDRs`
	if got := lines(ValidateNode(o, nil)); got != want {
		t.Errorf("violations:\n%s\nwant:\n%s", got, want)
	}
	status := &objectv1.Node{Status: &objectv1.NodeStatus{
		Addresses:  []*objectv1.NodeAddress{{Type: "InternalIP", Address: "x"}, {Type: "Hostname", Address: "n"}, {Type: "Hostname", Address: "n"}},
		Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "True"}, {Type: "DiskPressure", Status: "False"}},
	}}
	CarryNodeStatus(status, &objectv1.Node{Status: &objectv1.NodeStatus{Conditions: []*objectv1.NodeCondition{{Type: "Ready", Status: "False"}}}})
	if c := status.Status.Conditions; len(c) != 2 || c[0].GetType() != "DiskPressure" || c[1].GetStatus() != "False" {
		t.Errorf("conditions are %v: Ready must stay what cluster judged", c)
	}
	if got, want := lines(ValidateNodeStatus(status)), `status.addresses[0].address: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`+"\n"+
		`status.addresses[2]: "Hostname=n": must be unique`; got != want {
		t.Errorf("violations:\n%s\nwant:\n%s", got, want)
	}
}

func FuzzImagePullPolicy(f *testing.F) {
	for _, seed := range []string{"nginx", "nginx:latest", "r:5000/nginx", "nginx@sha256:0", "a:b@c", "", "/:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, image string) {
		if p := pullPolicy(image); p != "Always" && p != "IfNotPresent" {
			t.Errorf("%q is pulled %q", image, p)
		}
	})
}
