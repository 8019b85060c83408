package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"podwire.dev/cmd/podwire/internal/cli/describe"
	"podwire.dev/internal/manifest"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// column is one column of a table.
type column struct {
	title string
	// wide columns are shown with -o wide only.
	wide bool
	cell func(m manifest.Message, now time.Time) string
}

// columns returns the columns of a kind, those of kubectl where it has the kind.
func columns(kind string) []column {
	name := column{title: "NAME", cell: func(m manifest.Message, _ time.Time) string { return m.GetMetadata().GetName() }}
	age := column{title: "AGE", cell: func(m manifest.Message, now time.Time) string {
		return ageOf(m.GetMetadata().GetCreationTimestamp(), now)
	}}
	switch kind {
	case "Pod":
		return []column{name, {"READY", false, podReady}, {"STATUS", false, podStatus}, {"RESTARTS", false, podRestarts}, age, {"IP", true, podIP}, {"NODE", true, podNode}}
	case "Service":
		return []column{
			name, {"TYPE", false, serviceType}, {"CLUSTER-IP", false, clusterIP}, {"EXTERNAL-IP", false, externalIP},
			{"PORT(S)", false, servicePorts}, age, {"SELECTOR", true, serviceSelector},
		}
	case "EndpointSlice":
		return []column{name, {"ADDRESSTYPE", false, sliceType}, {"PORTS", false, slicePorts}, {"ENDPOINTS", false, sliceEndpoints}, age}
	case "NetworkPolicy":
		return []column{name, {"POD-SELECTOR", false, policySelector}, age}
	case "Ingress":
		return []column{
			name, {"CLASS", false, ingressClass}, {"HOSTS", false, ingressHosts}, {"ADDRESS", false, ingressAddress},
			{"PORTS", false, ingressPorts}, age,
		}
	case "IngressClass":
		return []column{name, {"CONTROLLER", false, classController}, {"PARAMETERS", false, classParameters}, age}
	case "Secret":
		return []column{name, {"TYPE", false, secretType}, {"DATA", false, secretData}, age}
	case "Namespace":
		return []column{name, {"STATUS", false, namespacePhase}, age}
	case "Node":
		return []column{name, {"STATUS", false, nodeStatus}, age, {"INTERNAL-IP", true, nodeIP}}
	case "AddressBlock":
		return []column{name, {"CIDR", false, blockCIDR}, {"HOLDER", false, blockHolder}, age}
	case "AddressClaim":
		return []column{name, {"POOL", false, claimPool}, {"VALUE", false, claimValue}, {"OWNER", false, claimOwner}, age}
	}
	return []column{name, age}
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

const none = "<none>"

func podReady(m manifest.Message, _ time.Time) string {
	pod := m.(*objectv1.Pod)
	ready := 0
	for _, c := range pod.GetStatus().GetContainerStatuses() {
		if c.GetReady() {
			ready++
		}
	}
	if describe.Member(pod) != "" && describe.Ready(pod) { // a fabric member: no agent runs its containers
		ready = len(pod.GetSpec().GetContainers())
	}
	return fmt.Sprintf("%d/%d", ready, len(pod.GetSpec().GetContainers()))
}

// podStatus is the word that kubectl has for a Pod: the reason of the first container that is not simply running, else the
// phase (kubectl's printer, printPod).
func podStatus(m manifest.Message, _ time.Time) string {
	pod := m.(*objectv1.Pod)
	if pod.GetMetadata().GetDeletionTimestamp() != nil {
		return "Terminating"
	}
	text := or(pod.GetStatus().GetReason(), or(pod.GetStatus().GetPhase(), "Pending"))
	running := false
	for _, c := range slices.Backward(pod.GetStatus().GetContainerStatuses()) {
		switch state := c.GetState(); {
		case state.GetWaiting().GetReason() != "":
			text = state.GetWaiting().GetReason()
		case state.GetTerminated() != nil:
			text = endOf(state.GetTerminated())
		case state.GetRunning() != nil && c.GetReady():
			running = true
		}
	}
	if text == "Completed" && running {
		return "Running"
	}
	return text
}

func endOf(t *objectv1.ContainerStateTerminated) string {
	switch {
	case t.GetReason() != "":
		return t.GetReason()
	case t.GetSignal() != 0:
		return fmt.Sprintf("Signal:%d", t.GetSignal())
	}
	return fmt.Sprintf("ExitCode:%d", t.GetExitCode())
}

// podRestarts counts restarts, and says how long ago the last one was.
func podRestarts(m manifest.Message, now time.Time) string {
	n := int32(0)
	var last time.Time
	for _, c := range m.(*objectv1.Pod).GetStatus().GetContainerStatuses() {
		n += c.GetRestartCount()
		if end := c.GetLastState().GetTerminated().GetFinishedAt(); end != nil && end.AsTime().After(last) {
			last = end.AsTime()
		}
	}
	if n == 0 || last.IsZero() {
		return strconv.Itoa(int(n))
	}
	return fmt.Sprintf("%d (%s ago)", n, age(now.Sub(last)))
}

func podIP(m manifest.Message, _ time.Time) string {
	var ips []string
	for _, ip := range m.(*objectv1.Pod).GetStatus().GetPodIps() {
		ips = append(ips, ip.GetIp())
	}
	return or(strings.Join(ips, ","), none)
}

func podNode(m manifest.Message, _ time.Time) string {
	return or(m.(*objectv1.Pod).GetSpec().GetNodeName(), none)
}

func serviceType(m manifest.Message, _ time.Time) string {
	return or(m.(*objectv1.Service).GetSpec().GetType(), "ClusterIP")
}

func clusterIP(m manifest.Message, _ time.Time) string {
	return or(strings.Join(m.(*objectv1.Service).GetSpec().GetClusterIps(), ","), none)
}

func externalIP(m manifest.Message, _ time.Time) string {
	svc := m.(*objectv1.Service)
	if svc.GetSpec().GetType() == "ExternalName" {
		return svc.GetSpec().GetExternalName()
	}
	ips := slices.Clone(svc.GetSpec().GetExternalIps())
	for _, in := range svc.GetStatus().GetLoadBalancer().GetIngress() {
		ips = append(ips, or(in.GetIp(), in.GetHostname()))
	}
	if len(ips) == 0 && svc.GetSpec().GetType() == "LoadBalancer" {
		return "<pending>"
	}
	return or(strings.Join(ips, ","), none)
}

func servicePorts(m manifest.Message, _ time.Time) string {
	var ports []string
	for _, p := range m.(*objectv1.Service).GetSpec().GetPorts() {
		text := strconv.Itoa(int(p.GetPort()))
		if p.GetNodePort() != 0 {
			text += ":" + strconv.Itoa(int(p.GetNodePort()))
		}
		ports = append(ports, text+"/"+or(p.GetProtocol(), "TCP"))
	}
	return or(strings.Join(ports, ","), none)
}

func serviceSelector(m manifest.Message, _ time.Time) string {
	return labels(m.(*objectv1.Service).GetSpec().GetSelector())
}

func labels(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return or(strings.Join(out, ","), none)
}

func sliceType(m manifest.Message, _ time.Time) string {
	return m.(*objectv1.EndpointSlice).GetAddressType()
}

func slicePorts(m manifest.Message, _ time.Time) string {
	var ports []string
	for _, p := range m.(*objectv1.EndpointSlice).GetPorts() {
		ports = append(ports, strconv.Itoa(int(p.GetPort())))
	}
	return or(strings.Join(ports, ","), none)
}

// maxListed is how many endpoints a cell names.
const maxListed = 3

func sliceEndpoints(m manifest.Message, _ time.Time) string {
	var all []string
	for _, e := range m.(*objectv1.EndpointSlice).GetEndpoints() {
		all = append(all, e.GetAddresses()...)
	}
	if n := len(all); n > maxListed {
		return strings.Join(all[:maxListed], ",") + fmt.Sprintf(" + %d more...", n-maxListed)
	}
	return or(strings.Join(all, ","), none)
}

func policySelector(m manifest.Message, _ time.Time) string {
	sel := m.(*objectv1.NetworkPolicy).GetSpec().GetPodSelector()
	text := labels(sel.GetMatchLabels())
	for _, e := range sel.GetMatchExpressions() {
		text = strings.TrimPrefix(text+","+strings.TrimSpace(e.GetKey()+" "+strings.ToLower(e.GetOperator())+" "+strings.Join(e.GetValues(), "|")), none+",")
	}
	return text
}

func ingressClass(m manifest.Message, _ time.Time) string {
	return or(m.(*objectv1.Ingress).GetSpec().GetIngressClassName(), none)
}

func ingressHosts(m manifest.Message, _ time.Time) string {
	var hosts []string
	for _, r := range m.(*objectv1.Ingress).GetSpec().GetRules() {
		if r.GetHost() != "" {
			hosts = append(hosts, r.GetHost())
		}
	}
	if n := len(hosts); n > maxListed {
		return strings.Join(hosts[:maxListed], ",") + fmt.Sprintf(" + %d more...", n-maxListed)
	}
	return or(strings.Join(hosts, ","), "*")
}

func ingressAddress(m manifest.Message, _ time.Time) string {
	var out []string
	for _, in := range m.(*objectv1.Ingress).GetStatus().GetLoadBalancer().GetIngress() {
		out = append(out, or(in.GetIp(), in.GetHostname()))
	}
	return strings.Join(out, ",")
}

func ingressPorts(m manifest.Message, _ time.Time) string {
	if len(m.(*objectv1.Ingress).GetSpec().GetTls()) > 0 {
		return "80, 443"
	}
	return "80"
}

func classController(m manifest.Message, _ time.Time) string {
	return m.(*objectv1.IngressClass).GetSpec().GetController()
}

func classParameters(m manifest.Message, _ time.Time) string {
	p := m.(*objectv1.IngressClass).GetSpec().GetParameters()
	if p == nil {
		return none
	}
	kind := p.GetKind()
	if p.GetApiGroup() != "" {
		kind += "." + p.GetApiGroup()
	}
	return kind + "/" + p.GetName()
}

func secretType(m manifest.Message, _ time.Time) string {
	return or(m.(*objectv1.Secret).GetType(), "Opaque")
}

func secretData(m manifest.Message, _ time.Time) string {
	return strconv.Itoa(len(m.(*objectv1.Secret).GetData()))
}

func namespacePhase(m manifest.Message, _ time.Time) string {
	return or(m.(*objectv1.Namespace).GetStatus().GetPhase(), "Active")
}

func nodeStatus(m manifest.Message, _ time.Time) string {
	for _, c := range m.(*objectv1.Node).GetStatus().GetConditions() {
		if c.GetType() != "Ready" {
			continue
		}
		switch c.GetStatus() {
		case "True":
			return "Ready"
		case "Unknown":
			return "Dead"
		}
		return "NotReady"
	}
	return "Joining"
}

func nodeIP(m manifest.Message, _ time.Time) string {
	var ips []string
	for _, a := range m.(*objectv1.Node).GetStatus().GetAddresses() {
		if a.GetType() == "InternalIP" {
			ips = append(ips, a.GetAddress())
		}
	}
	return or(strings.Join(ips, ","), none)
}

func blockCIDR(m manifest.Message, _ time.Time) string {
	return m.(*objectv1.AddressBlock).GetSpec().GetCidr()
}

func blockHolder(m manifest.Message, _ time.Time) string {
	spec := m.(*objectv1.AddressBlock).GetSpec()
	return or(spec.GetNode(), spec.GetMember())
}

func claimPool(m manifest.Message, _ time.Time) string {
	return m.(*objectv1.AddressClaim).GetSpec().GetPool()
}

func claimValue(m manifest.Message, _ time.Time) string {
	return m.(*objectv1.AddressClaim).GetSpec().GetValue()
}

func claimOwner(m manifest.Message, _ time.Time) string {
	o := m.(*objectv1.AddressClaim).GetSpec().GetOwner()
	return o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
}
