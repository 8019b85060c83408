package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"
)

// shopHost is the host that manifests/web.yaml serves with TLS.
const shopHost = "shop.example.test"

// door is where requests from outside arrive: the load balancer address of the ingress.
func (d *demo) door(ctx context.Context) (service, string, error) {
	s, err := d.service(ctx, "podwire-ingress", "-n", "kube-system")
	if err != nil {
		return s, "", err
	}
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return s, "", errors.New("kube-system/podwire-ingress has no load balancer address")
	}
	return s, s.Status.LoadBalancer.Ingress[0].IP, nil
}

// web sends one request and compares what came back: the beginning of the answer, and a line of its header.
func (d *demo) web(ctx context.Context, what string, from place, status, header string, args ...string) {
	a := d.exec(ctx, from, append([]string{"probe", "http", "--headers"}, args...)...)
	good := a.code == 0 && strings.Contains(firstLine(a.out), " "+status) && (header == "" || strings.Contains(a.out, header+"\n"))
	d.judge(what, verdict(good), fmt.Sprintf("%s -> http %s: %s", from.name, strings.Join(args, " "), telling(a)))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// telling are the lines of an answer that say something here.
func telling(a answer) string {
	if a.code != 0 {
		return a.text()
	}
	parts := []string{firstLine(a.out)}
	for line := range strings.Lines(a.out) {
		if strings.HasPrefix(line, "Echo-Request:") || strings.HasPrefix(line, "Location:") {
			parts = append(parts, strings.TrimSpace(line))
		}
	}
	return strings.Join(append(parts, fmt.Sprintf("%q", lastLine(a.out))), " | ")
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndex(text, "\n")+1:]
}

func (d *demo) checkIngress(ctx context.Context) error {
	s, addr, err := d.door(ctx)
	if err != nil {
		return err
	}
	at := func(path string) string { return "http://" + addr + path }
	d.web(ctx, "the path is rewritten", outside(), "200", "Echo-Request: GET /", at("/testpath"))
	d.web(ctx, "and so is what is below it; a query stays", outside(), "200", "Echo-Request: GET /?x=1", at("/testpath/deeper?x=1"))
	for _, p := range s.Spec.Ports {
		if p.Port == 80 {
			d.web(ctx, "through a node port", outside(), "200", "Echo-Request: GET /",
				"http://"+net.JoinHostPort(d.nodes[0].v4, fmt.Sprint(p.NodePort))+"/testpath")
		}
	}
	d.web(ctx, "an unknown path", outside(), "404", "", at("/testpathology"))
	d.web(ctx, "an unknown host", outside(), "404", "", at("/"), "--host", "nobody.example.test")
	cert, err := d.applyCertificate(ctx)
	if err != nil {
		return err
	}
	secure := "https://" + addr + "/cart"
	d.web(ctx, "HTTPS with the Secret's certificate", outside(), "200", "Echo-Request: GET /cart", secure, "--host", shopHost, "--ca", cert)
	a := d.exec(ctx, outside(), "probe", "http", secure, "--host", "nobody.example.test", "--ca", cert)
	d.judge("which is nobody else's", verdict(a.code == 1), "outside -> http "+secure+" --host nobody.example.test: "+a.text())
	d.web(ctx, "plain HTTP is sent there", outside(), "308", "Location: https://"+shopHost+"/cart", at("/cart"), "--host", shopHost)
	return nil
}

// applyCertificate makes a certificate for shopHost, applies it as a Secret, and returns the file that trusts it.
func (d *demo) applyCertificate(ctx context.Context) (string, error) {
	cert, key, err := selfSigned(shopHost)
	if err != nil {
		return "", err
	}
	secret := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata:\n  name: shop-cert\ntype: kubernetes.io/tls\ndata:\n  tls.crt: %s\n  tls.key: %s\n",
		base64.StdEncoding.EncodeToString(cert), base64.StdEncoding.EncodeToString(key))
	file, err := d.file("shop-cert.yaml", []byte(secret))
	if err != nil {
		return "", err
	}
	d.applied = append(d.applied, file)
	if _, err := d.must(ctx, "", "apply", "--wait", "-f", file); err != nil {
		return "", err
	}
	return d.file("shop.crt", cert)
}

// certLife is longer than any run.
const certLife = 24 * time.Hour

func selfSigned(host string) (cert, key []byte, err error) {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, secret.Public(), secret)
	if err != nil {
		return nil, nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}

func (d *demo) checkIngressOnly(ctx context.Context) error {
	_, addr, err := d.door(ctx)
	if err != nil {
		return err
	}
	s, err := d.service(ctx, "test")
	if err != nil {
		return err
	}
	direct := net.JoinHostPort(s.Spec.ClusterIP, "80")
	d.probe(ctx, "before it, a pod", d.inPod("client-2"), reached, "test-", "tcp", direct)
	path, err := d.manifest("ingress-only")
	if err != nil {
		return err
	}
	d.applied = append(d.applied, path)
	if _, err := d.must(ctx, "", "apply", "--wait", "-f", path); err != nil {
		return err
	}
	d.web(ctx, "through the ingress", outside(), "200", "Echo-Request: GET /", "http://"+addr+"/testpath")
	d.probe(ctx, "a pod", d.inPod("client-2"), timedOut, "", "tcp", direct, "--timeout", "1s")
	d.probe(ctx, "the backend itself", d.inPod("client-3"), timedOut, "", "tcp", net.JoinHostPort(d.pods["test-1"].v4, "8080"), "--timeout", "1s")
	if _, err := d.must(ctx, "", "delete", "--wait", "-f", path); err != nil {
		return err
	}
	d.probe(ctx, "policy deleted, a pod", d.inPod("client-2"), reached, "test-", "tcp", direct)
	return nil
}

// checkReplacement replaces every pod behind an Ingress while clients send requests, on new connections and on kept ones.
func (d *demo) checkReplacement(ctx context.Context) error {
	_, addr, err := d.door(ctx)
	if err != nil {
		return err
	}
	plain, secure := "http://"+addr+"/testpath", "https://"+addr+"/"
	loads := []*traffic{
		d.traffic(ctx, outside(), answered, "http", plain, "--headers"),
		d.traffic(ctx, outside(), answered, "http", plain, "--headers", "--keep-alive"),
		d.traffic(ctx, outside(), answered, "http", secure, "--headers", "--keep-alive", "--insecure", "--host", shopHost),
	}
	settle := func() error {
		for _, load := range loads {
			if err := load.more(ctx, enough); err != nil {
				return err
			}
		}
		return nil
	}
	for _, load := range loads {
		defer load.run.stop()
	}
	if err := settle(); err != nil {
		return err
	}
	if err := d.apply(ctx, "web-pods-new"); err != nil {
		return err
	}
	old, err := d.manifest("web-pods-old")
	if err != nil {
		return err
	}
	if _, err := d.must(ctx, "", "delete", "--wait", "-f", old); err != nil {
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	for _, load := range loads {
		load.run.stop()
		load.run.wait(ctx)
		good, bad, last := load.count()
		d.judge("no request fails", verdict(bad == 0 && good > 0), fmt.Sprintf("%s: %d answered with 200, %d not%s", load.text, good, bad, last))
	}
	a := d.exec(ctx, outside(), "probe", "http", plain)
	name, _, _ := strings.Cut(a.out, " ")
	d.judge("others answer now", verdict(name == "test-3" || name == "test-4"), "outside -> http "+plain+": "+a.text())
	return nil
}

// answered is how a line of probe begins that says that a request was served.
var answered = []string{"reached: HTTP/1.1 200", "reached: HTTP/2.0 200"}
